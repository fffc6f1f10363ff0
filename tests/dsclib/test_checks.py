"""The checks at the door: each refusal names the argument, what came and what was expected."""

import re

import numpy as np
import pytest
import torch

from dsclib import _checks as checks

D = torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: checks.as_tensor("abc", "Y"), "Y is a str that cannot become a tensor"),
        (lambda: checks.as_tensor(object(), "Y"), "Y is a object that cannot become a tensor"),
        (lambda: checks.as_tensor([1j], "Y"), "Y is complex"),
        (lambda: checks.as_tensor(torch.ones(2).half(), "Y"), "Y has dtype torch.float16"),
        (lambda: checks.as_tensor([1.0, np.nan], "Y"), "Y holds 1 NaN or infinite entries of 2"),
        (lambda: checks.as_tensor([1.0], "Y", "(B, m)"), "for a single one use Y[None]"),
        (lambda: checks.as_tensor(torch.ones(0, 2), "Y", "(B, m)"), "no empty axis"),
        (lambda: checks.as_dictionary(2 * D, unit=True), "atoms of length 2 to 2"),
        (lambda: checks.as_signals(torch.ones(3, 2).double(), D), "signals are rows of a batch"),
        (lambda: checks.as_signals(torch.ones(2, 3), D), "Y is torch.float32"),
        (lambda: checks.as_weights(torch.ones(2, 3).double(), D), "expected that of D, (3, 3)"),
        (lambda: checks.as_threshold(-0.5, "t", D), "t = -0.5, expected a finite number >= 0"),
        (lambda: checks.as_threshold(float("nan"), "t", D), "t = nan"),
        (lambda: checks.as_threshold(-D, "t", D), "entries down to -1"),
        (lambda: checks.as_threshold(torch.ones(4).double(), "t", D), "broadcasts against (3, 3)"),
        (lambda: checks.as_count(2.5, "s"), "s = 2.5, expected a whole number"),
        (lambda: checks.as_count(True, "s"), "s = True, expected a whole number"),
        (lambda: checks.as_count(9, "s", at_most=4), "s = 9, expected at least 1 and at most 4"),
        (lambda: checks.as_number(float("inf"), "lam"), "lam = inf, expected a finite number"),
        (
            lambda: checks.as_number(0, "lam", positive=True),
            "lam = 0, expected a finite number > 0",
        ),
        (lambda: checks.as_groups(10, 3), "group_size = 3 does not divide the 10 atoms"),
        (lambda: checks.as_choice("x", "boundary", ("a", "b")), "expected one of 'a', 'b'"),
        (lambda: checks.generator(-1), "seed = -1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_arrays_are_converted_once_and_tensors_pass_untouched():
    assert checks.as_tensor(np.ones((2, 2)), "Y").dtype == torch.float64
    assert checks.as_tensor([1, 2], "Y").dtype == torch.float32
    assert checks.as_tensor(np.ones(2), "Y", like=torch.ones(1)).dtype == torch.float32
    x = torch.ones(2, requires_grad=True)
    assert checks.as_tensor(x, "x") is x
    assert checks.generator(None) is None
