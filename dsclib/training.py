"""Training: one loop for every model of the book.

:func:`fit` takes a gradient step for each batch of the data. It stops early if asked to, writes
checkpoints, and goes on from them as if it had never been interrupted.
"""

from __future__ import annotations

import copy
import math
import operator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ._batches import as_batches
from ._checks import as_count, as_number
from ._run import Run, as_path, resume, settings_of, write


class History(NamedTuple):
    """What happened in training, epoch by epoch.

    ``loss`` holds the mean loss of each epoch, measured while the weights change; ``validation``
    the value of ``validation(model)`` after each epoch, and nothing if there is none.
    ``best_epoch`` is the index of the epoch whose weights the model has now: the one with the
    smallest validation, without validation the last. ``stopped`` is ``"epochs"`` if all of them
    were run, ``"patience"`` if the validation no longer fell.
    """

    loss: tuple[float, ...]
    validation: tuple[float, ...]
    best_epoch: int
    stopped: str


def fit(
    model: nn.Module,
    loss,
    data,
    *,
    epochs: int = 1,
    batch_size: int = 128,
    optimizer=torch.optim.Adam,
    lr: float = 1e-3,
    seed: int | None = None,
    validation=None,
    patience: int | None = None,
    after_step=None,
    checkpoint=None,
    progress: bool = True,
) -> History:
    r"""Train a model in place: lower its mean loss by gradient steps on random batches.

    .. math:: \min_\theta \; \frac1B \sum_{i=1}^B \text{loss}(\theta, y_i)

    Parameters
    ----------
    model : torch.nn.Module
        Trained in place, in ``train()`` mode; the mode of every part is put back at the end.
    loss : callable
        ``loss(model, *batch)`` returns a scalar tensor, the mean over the batch.
    data : tensor, tuple of tensors, or iterable of batches
        Tensors or NumPy arrays with equal first axis B, shuffled in every epoch and moved batch by
        batch to the device of the model; or what can be iterated once an epoch, such as a
        ``DataLoader``, and gives a tuple of tensors or one tensor each time.
    epochs : int
        Passes over the data.
    batch_size : int
        Signals a batch, of tensors; an iterable brings its own batches.
    optimizer : callable or torch.optim.Optimizer
        Called as ``optimizer(parameters, lr=lr)``, for example ``torch.optim.SGD``; or an
        optimiser over parameters of the model, which keeps its own ``lr``.
    lr : float
        Learning rate.
    seed : int, optional
        For the order of the batches; torch's default generator if not given.
    validation : callable, optional
        ``validation(model)`` returns a number, smaller is better. It is called after every epoch
        in ``eval()`` mode without gradients. The model ends with the weights of its best epoch.
    patience : int, optional
        Stop after this many epochs without a new smallest validation.
    after_step : callable, optional
        ``after_step(model, step)`` is called without gradients after step 1, 2, ..., counted over
        all epochs: the place to put weights back on a constraint or to change a learning rate.
    checkpoint : path, optional
        Written after every epoch. If the file exists, training goes on from it: call the same
        script again after an interruption, or with more ``epochs`` to train longer.
    progress : bool
        Show a progress bar on stderr, if that is a terminal.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If the data are empty, not finite or of unequal length, a number is out of range, the
        model has no trainable parameters, the optimiser holds others than the model's, the loss
        is not a scalar that depends on them, or the checkpoint is damaged or of another run.
    FloatingPointError
        If the loss, a weight or the validation becomes NaN or infinite; the model and the
        optimiser are put back to what they were before the call.

    Notes
    -----
    With ``seed`` two runs from equal weights agree bit for bit, on one machine with one number of
    threads. Dropout and other random layers draw from torch's default generator, which ``fit``
    leaves alone: call ``torch.manual_seed`` before for them.

    A run that goes on from a checkpoint equals an uninterrupted one bit for bit: the file holds
    the state of model, optimiser, torch's generators and the ``generator`` of a ``DataLoader``,
    and going on sets them. Not in the file are NumPy's and Python's random numbers, the state of
    a scheduler (in ``after_step`` make the learning rate a function of ``step`` instead), and the
    functions ``loss``, ``validation`` and ``after_step``: delete the file if they change.
    """
    epochs, size = as_count(epochs, "epochs"), as_count(batch_size, "batch_size")
    for name, f in {"loss": loss, "validation": validation, "after_step": after_step}.items():
        if not callable(f) and (f is not None or name == "loss"):
            raise ValueError(f"{name} is a {type(f).__name__}, expected a function of the model")
    if patience is not None and as_count(patience, "patience") and validation is None:
        raise ValueError(f"patience = {patience} needs a validation: pass validation=...")
    parameters = _trainable(model)
    batches = as_batches(data, parameters[0], size, seed)
    optimizer = _as_optimizer(optimizer, parameters, as_number(lr, "lr", positive=True), model)
    run = Run(model, optimizer, getattr(batches, "generator", None), parameters[0].device)
    modes = [(part, part.training) for part in model.modules()]
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    if checkpoint is not None:
        checkpoint = as_path(checkpoint)
        settings = settings_of(run, batches, validation)
        if checkpoint.exists():
            resume(run, checkpoint, settings, epochs)
    total = epochs * operator.length_hint(batches) or None
    try:
        with tqdm(total=total, initial=run.step, disable=None if progress else True) as bar:
            while not (stopped := run.stopped(epochs, patience)):
                model.train()
                run.loss.append(_epoch(run, loss, batches, after_step, bar))
                bar.set_postfix(loss=run.loss[-1])
                if validation is not None:
                    model.eval()
                    run.validation.append(_validate(run, validation))
                    bar.set_postfix(loss=run.loss[-1], validation=run.validation[-1])
                    if run.best_epoch == len(run.loss) - 1:
                        run.best = copy.deepcopy(model.state_dict())
                if checkpoint is not None:
                    write(checkpoint, {"settings": settings, **run.state()})
    except FloatingPointError:
        model.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        raise
    finally:
        for part, mode in modes:
            part.training = mode
    if run.best is not None:
        model.load_state_dict(run.best)
    return History(tuple(run.loss), tuple(run.validation), run.best_epoch, stopped)


def _epoch(run: Run, loss, batches, after_step, bar) -> float:
    """One pass over the data; returns the mean loss."""
    total, count = 0.0, 0
    for batch in batches:
        batch = batch if isinstance(batch, tuple | list) else [batch]
        batch = [x.to(run.device) if isinstance(x, Tensor) else x for x in batch]
        value = _checked_loss(loss(run.model, *batch), run)
        run.model.zero_grad()
        value.backward()
        run.optimizer.step()
        run.step += 1
        if after_step is not None:
            with torch.no_grad():
                after_step(run.model, run.step)
        total, count = total + value.item() * len(batch[0]), count + len(batch[0])
        bar.update()
    if count == 0:
        raise ValueError(f"data gave no batch in epoch {len(run.loss) + 1}, expected at least one")
    if not all(p.isfinite().all() for p in run.model.parameters()):
        raise run.diverged("a weight is NaN or infinite")  # a gradient was, the loss not yet
    return total / count


def _checked_loss(value, run: Run) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss returned {came}, expected a scalar tensor: return the mean")
    if not value.isfinite():
        raise run.diverged(f"the loss is {value.item()}")
    if not value.requires_grad:
        raise ValueError(
            "the loss does not depend on trainable parameters of the model, expected a tensor "
            "with a gradient: call the model inside loss, without detach, item or no_grad"
        )
    return value


@torch.no_grad()
def _validate(run: Run, validation) -> float:
    value = validation(run.model)
    try:
        value = float(value)
    except (TypeError, ValueError, RuntimeError) as err:
        raise ValueError(
            f"validation returned a {type(value).__name__}, expected a number: {err}"
        ) from None
    if not math.isfinite(value):
        raise run.diverged(f"the validation is {value}")
    return value


def _trainable(model) -> list[nn.Parameter]:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"model ({type(model).__name__}) has no trainable parameters, expected at least one: "
            "it is frozen or has none, use model.requires_grad_(True) or another model"
        )
    return parameters


def _as_optimizer(optimizer, parameters, lr: float, model) -> torch.optim.Optimizer:
    if not isinstance(optimizer, torch.optim.Optimizer):
        if not callable(optimizer):
            raise ValueError(
                f"optimizer is a {type(optimizer).__name__}, expected an optimiser or what is "
                "called with parameters and lr=...: pass torch.optim.Adam, not its name"
            )
        return optimizer(parameters, lr=lr)
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if foreign := sum(id(p) not in own for p in held):
        raise ValueError(
            f"optimizer holds {foreign} of {len(held)} parameters that are not the model's: make "
            "it from model.parameters(), or put all that is trained into one nn.ModuleList"
        )
    return optimizer
