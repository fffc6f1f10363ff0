"""Training: the loop, its early stop, and runs that are interrupted and go on."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dsclib.training import History, fit


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small problems: on a busy machine threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(seed=0, dropout=0.3, width=8, dtype=torch.float32):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 3)).to(dtype)


def error(model, x, y):
    return (model(x) - y).square().mean()


X, Y = normal(50, 6), normal(50, 3, seed=2)


def weights(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def interrupt_after(steps):
    def after_step(model, step):
        if step == steps:
            raise KeyboardInterrupt

    return after_step


# ---------------------------------------------------------------- the loop


def test_equals_the_loop_in_the_open():
    """Against ten plain lines: same order of the batches, same weights, same mean loss."""
    model, other = network(dropout=0), network(dropout=0)
    history = fit(model, error, (X, Y), epochs=3, batch_size=16, lr=0.01, seed=4)
    adam, g = torch.optim.Adam(other.parameters(), lr=0.01), torch.Generator().manual_seed(4)
    losses = []
    for _ in range(3):
        total = 0.0
        for index in torch.randperm(50, generator=g).split(16):
            adam.zero_grad()
            value = error(other, X[index], Y[index])
            value.backward()
            adam.step()
            total += value.item() * len(index)
        losses.append(total / 50)
    assert same(weights(model), weights(other))
    assert isinstance(history, History)
    assert history == (tuple(losses), (), 2, "epochs")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learns_a_linear_map(dtype):
    A = normal(3, 6, dtype=dtype)
    x = normal(400, 6, seed=3, dtype=dtype)
    model = nn.Linear(6, 3, bias=False, dtype=dtype)
    history = fit(model, error, (x, x @ A.T), epochs=30, batch_size=20, lr=0.03, seed=0)
    torch.testing.assert_close(model.weight, A, atol=1e-4, rtol=0)
    assert history.loss[-1] < 1e-6 * history.loss[0]
    assert model.weight.dtype == dtype


def test_seed_decides_the_order_and_nothing_else():
    def run(seed, noise=0):
        model = network(dropout=0)
        torch.manual_seed(noise)
        fit(model, error, (X, Y), epochs=2, batch_size=8, seed=seed)
        return weights(model), torch.get_rng_state()

    first, state = run(3)
    assert same(first, run(3, noise=9)[0])
    assert not same(first, run(4)[0])
    assert torch.equal(
        state, torch.manual_seed(0).get_state()
    )  # the default one was not drawn from
    assert same(run(None)[0], run(None)[0])
    assert not same(run(None)[0], run(None, noise=9)[0])


def test_one_tensor_one_array_and_labels():
    flat = nn.Linear(6, 6)
    fit(flat, lambda model, x: (model(x) - x).square().mean(), X)
    arrays = X.double().numpy(), np.arange(50) % 3
    seen = []

    def loss(model, x, label):
        seen.append((x.dtype, label.dtype))
        return nn.functional.cross_entropy(model(x), label)

    fit(network(), loss, arrays)
    assert seen == [(torch.float32, torch.int64)]  # numbers as the model's, labels as they came


def test_iterables():
    batches = [(X[:20], Y[:20]), (X[20:], Y[20:])]
    model, other = network(dropout=0), network(dropout=0)
    history = fit(model, error, batches, epochs=2)
    loader = DataLoader(TensorDataset(X, Y), batch_sampler=[range(20), range(20, 50)])
    assert fit(other, error, loader, epochs=2) == history
    assert same(weights(model), weights(other))

    class Endless:  # no length
        def __iter__(self):
            return iter([X, X])

    flat = nn.Linear(6, 6)
    history = fit(flat, lambda model, x: model(x).square().mean(), Endless(), epochs=2)
    assert len(history.loss) == 2


def test_modes_come_back():
    model, seen = network(), []
    model.eval()
    model[3].train()
    modes = [part.training for part in model.modules()]

    def validation(model):
        seen.append((model[1].training, torch.is_grad_enabled()))
        return 1.0

    def loss(model, x, y):
        assert all(part.training for part in model.modules())
        return error(model, x, y)

    fit(model, loss, (X, Y), epochs=2, validation=validation)
    assert seen == [(False, False)] * 2
    assert [part.training for part in model.modules()] == modes
    with pytest.raises(KeyboardInterrupt):
        fit(model, loss, (X, Y), after_step=interrupt_after(1))
    assert [part.training for part in model.modules()] == modes


def test_optimisers():
    sgd, instance = network(dropout=0), network(dropout=0)
    fit(sgd, error, (X, Y), optimizer=torch.optim.SGD, lr=0.1, seed=0)
    fit(instance, error, (X, Y), optimizer=torch.optim.SGD(instance.parameters(), lr=0.1), seed=0)
    assert same(weights(sgd), weights(instance))
    assert not same(weights(sgd), weights(network(dropout=0)))


def test_frozen_parts_stay():
    model = network(dropout=0)
    model[0].requires_grad_(False)
    before = weights(model[0])
    fit(model, error, (X, Y), epochs=2)
    assert same(weights(model[0]), before)


def test_after_step_keeps_columns_at_length_1():
    model, steps = nn.Linear(6, 6, bias=False), []

    def unit(model, step):
        steps.append(step)
        model.weight.div_(model.weight.norm(dim=0))

    fit(model, error, (X, X), epochs=2, batch_size=25, after_step=unit, seed=0)
    torch.testing.assert_close(model.weight.norm(dim=0), torch.ones(6))
    assert steps == [1, 2, 3, 4]


def test_no_output_without_a_terminal(capfd):
    fit(network(), error, (X, Y))
    assert capfd.readouterr() == ("", "")


def test_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    fit(network(), error, (X, Y), batch_size=10, epochs=2, validation=lambda model: 0.5)
    shown = capsys.readouterr()
    assert "10/10" in shown.err and "loss=" in shown.err and "validation=0.5" in shown.err
    fit(network(), error, (X, Y), progress=False)
    assert capsys.readouterr() == ("", "") and shown.out == ""


# ---------------------------------------------------------------- early stop


def scripted(values, seen):
    """A validation that returns given values and notes the weights it was given."""
    values = iter(values)

    def validation(model):
        seen.append(weights(model))
        return next(values)

    return validation


def test_early_stop_restores_the_best():
    model, seen, values = network(), [], (5.0, 3.0, 4.0, 3.0, 6.0)
    history = fit(
        model, error, (X, Y), epochs=20, validation=scripted(values, seen), patience=3, seed=0
    )
    assert history.stopped == "patience" and history.best_epoch == 1
    assert history.validation == values and len(history.loss) == 5
    assert same(weights(model), seen[1]) and not same(seen[1], seen[4])


def test_without_patience_all_epochs_run():
    model, seen = network(), []
    validation = scripted((2, torch.tensor(-1.0), np.float32(3)), seen)
    history = fit(model, error, (X, Y), epochs=3, validation=validation)
    assert history[1:] == ((2.0, -1.0, 3.0), 1, "epochs")
    assert same(weights(model), seen[1])


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("seed", [5, None])
@pytest.mark.parametrize("steps", [1, 9, 12])  # in the first epoch, in a later one, at its end
def test_interrupted_and_resumed_is_the_same_run(tmp_path, seed, steps):
    """Adam, dropout, batch normalisation, early stop: weights, history and random state agree."""
    file = tmp_path / "run.pt"

    def run(start=0, **options):
        model = network(start)
        torch.manual_seed(start)
        # It gets worse with training, so the best weights are from before the interruption.
        options = dict(validation=lambda model: -error(model, X, Y), patience=4) | options
        h = fit(model, error, (X, Y), epochs=6, batch_size=16, lr=0.03, seed=seed, **options)
        return weights(model), h, torch.get_rng_state()

    expected, history, state = run()
    assert history.best_epoch == 0 and history.stopped == "patience"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=file, after_step=interrupt_after(steps))
    assert file.exists() == (steps > 4)
    start = 11 if file.exists() else 0  # other weights and random numbers: the file has them
    for _ in range(2):  # goes on, then finds the run finished
        found, again, after = run(start, checkpoint=file)
        assert same(found, expected) and again == history and torch.equal(after, state)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_resumed_with_a_loader_and_a_schedule(tmp_path):
    """The loader's generator is in the file; a rate that is a function of the step is exact."""

    def run(checkpoint=None, stop=None):
        model = network()
        adam = torch.optim.Adam(model.parameters(), lr=0.1)
        g = torch.Generator().manual_seed(6)
        loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True, generator=g)

        def after_step(model, step):
            adam.param_groups[0]["lr"] = 0.1 / (1 + step)
            if step == stop:
                raise KeyboardInterrupt

        fit(
            model, error, loader, epochs=4, optimizer=adam,
            after_step=after_step, checkpoint=checkpoint,
        )  # fmt: skip
        return weights(model)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.pt", stop=10)
    assert same(run(tmp_path / "run.pt"), run())


def test_more_epochs_go_on(tmp_path):
    def run(epochs, **options):
        model = network()
        history = fit(model, error, (X, Y), epochs=epochs, batch_size=16, seed=0, **options)
        return history, weights(model)

    file = tmp_path / "run.pt"
    history, expected = run(5)
    assert run(2, checkpoint=file)[0].loss == history.loss[:2]
    again, found = run(5, checkpoint=file)
    assert again == history and same(found, expected)
    with pytest.raises(ValueError, match="has 5 epochs, more than epochs = 3"):
        run(3, checkpoint=file)


def test_a_crash_while_writing_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    file, save, written = tmp_path / "run.pt", torch.save, []

    def crash(state, target):
        if len(written) == 2:
            target.write(b"half a checkpoint")
            raise OSError("no space left on device")
        save(state, target)
        written.append(1)

    def run(**options):
        model = network()
        fit(model, error, (X, Y), epochs=4, batch_size=16, seed=0, **options)
        return weights(model)

    expected = run()
    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="no space"):
        run(checkpoint=file)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    assert len(torch.load(file, weights_only=True)["log"]["loss"]) == 2
    (tmp_path / "run.pt.part").write_bytes(b"what a killed process leaves")
    assert same(run(checkpoint=file), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


class Scaled(nn.Linear):
    """A layer with a constant, as the thresholds of this book's models."""

    def __init__(self, lam):
        super().__init__(6, 3)
        self.lam = lam

    def extra_repr(self):
        return f"{super().extra_repr()}, lam={self.lam}"


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    file = tmp_path / "run.pt"

    def run(model=None, data=(X, Y), **options):
        options = dict(batch_size=16, seed=0, lr=0.01, checkpoint=file) | options
        return fit(network() if model is None else model, error, data, **options)

    run()
    before = file.read_bytes()
    for change, message in [
        (dict(model=network(width=9)), r"differs in model: .*out_features=8.*out_features=9"),
        (dict(model=network(dropout=0.5)), r"differs in model: .*p=0.3.*p=0.5"),
        (dict(model=network(dtype=torch.float64), data=(X.double(), Y.double())), "float64"),
        (dict(model=nn.Linear(6, 3)), "differs in model"),
        (dict(lr=0.02), r"differs in optimizer: .*'lr: 0.01'.*'lr: 0.02'"),
        (dict(optimizer=torch.optim.SGD), "differs in optimizer"),
        (dict(batch_size=17), "differs in batch_size: it has '16', this run has '17'"),
        (dict(seed=1), "differs in seed: it has '0', this run has '1'"),
        (dict(seed=None), "differs in seed: it has '0', this run has 'none'"),
        (dict(data=(X[:40], Y[:40])), r"differs in data: .*\(50, 6\).*\(40, 6\)"),
        (dict(data=(X, -Y)), "differs in data: .*CRC"),
        (dict(data=[(X, Y)], seed=None), "differs in data"),
        (dict(validation=lambda model: 1), "differs in validation"),
    ]:
        model = change.setdefault("model", network())
        start = weights(model)
        with pytest.raises(ValueError, match=message) as info:
            run(**change)
        assert str(file) in str(info.value) and "delete" in str(info.value)
        assert same(weights(model), start)
    assert file.read_bytes() == before
    file.unlink()
    run(Scaled(0.1))
    with pytest.raises(ValueError, match="lam=0.1.*lam=0.2"):
        run(Scaled(0.2))


def test_damaged_checkpoints_are_named(tmp_path):
    file = tmp_path / "run.pt"

    def run():
        return fit(network(), error, (X, Y), seed=0, checkpoint=file)

    run()
    whole = file.read_bytes()
    for size in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=re.escape(str(file)) + " is truncated, altered"):
            run()
        assert len(file.read_bytes()) == size
    altered, model = bytearray(whole), network()
    fit(model, error, (X, Y), seed=0)
    altered[whole.index(model[0].weight.detach().numpy().tobytes())] ^= 1  # one bit of a weight
    file.write_bytes(altered)
    with pytest.raises(ValueError, match="is altered, .* does not match its sum"):
        run()
    torch.save(network().state_dict(), file)
    with pytest.raises(ValueError, match="no checkpoint of fit"):
        run()


def test_checkpoint_is_a_file_in_a_folder_that_exists(tmp_path):
    for path in [tmp_path, tmp_path / "none" / "run.pt"]:
        with pytest.raises(ValueError, match="name of a file in a folder"):
            fit(network(), error, (X, Y), checkpoint=path)


# ---------------------------------------------------------------- what cannot be right


def test_a_bad_loss_stops_and_leaves_the_weights(tmp_path):
    model, file = network(), tmp_path / "run.pt"
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    fit(model, error, (X, Y), optimizer=adam)
    before, moments, steps = weights(model), repr(adam.state_dict()), []

    def loss(model, x, y):
        steps.append(1)
        return error(model, x, y) * (math.inf if len(steps) == 6 else 1)

    with pytest.raises(FloatingPointError, match="loss is inf after 5 steps.*below 0.01"):
        fit(model, loss, (X, Y), epochs=9, batch_size=25, optimizer=adam, checkpoint=file, seed=0)
    assert same(weights(model), before) and repr(adam.state_dict()) == moments
    assert len(torch.load(file, weights_only=True)["log"]["loss"]) == 2  # the last good epoch


def test_a_bad_gradient_in_the_last_step_is_seen():
    model = nn.Linear(6, 3, bias=False)
    nn.init.zeros_(model.weight)
    with pytest.raises(FloatingPointError, match="weight is NaN or infinite after 1 steps"):
        fit(model, lambda model, x: model(x).square().sum(dim=1).sqrt().mean(), X)
    assert (model.weight == 0).all()


def test_a_bad_validation_stops():
    with pytest.raises(FloatingPointError, match="validation is nan"):
        fit(network(), error, (X, Y), validation=lambda model: math.nan)
    for value in (None, torch.ones(2)):
        with pytest.raises(ValueError, match="validation returned a .*expected a number"):
            fit(network(), error, (X, Y), validation=lambda model, value=value: value)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model="network"), "model is a str"),
        (dict(model=nn.ReLU()), "ReLU.* has no trainable parameters"),
        (dict(model=network().requires_grad_(False)), "frozen"),
        (dict(loss=None), "loss is a NoneType"),
        (dict(loss=lambda model, x, y: model(x) - y), r"shape \(50, 3\), expected a scalar"),
        (dict(loss=lambda model, x, y: 1.0), "returned float, expected a scalar"),
        (dict(loss=lambda model, x, y: error(model, x, y).detach()), "does not depend"),
        (dict(data=()), "at least one tensor"),
        (dict(data=(X[:0], Y[:0])), r"length \[0, 0\]"),
        (dict(data=(X, Y[:49])), r"length \[50, 49\]"),
        (dict(data=(X, Y / 0)), r"data\[1\] holds 150 NaN or infinite"),
        (dict(data=(X, torch.tensor(1.0))), r"data\[1\] is a single number"),
        (dict(data=[X, Y]), r"use tuple\(data\)"),
        (dict(data=[]), "no batch in epoch 1"),
        (dict(data=iter([(X, Y)])), "once an epoch"),
        (dict(data=None), "data is a NoneType"),
        (dict(data=[(X, Y)], seed=0), "an order of its own"),
        (dict(epochs=0), "epochs = 0"),
        (dict(batch_size=2.5), "batch_size = 2.5"),
        (dict(lr=0), "lr = 0"),
        (dict(lr=math.nan), "lr = nan"),
        (dict(seed=-1), "seed = -1"),
        (dict(patience=3), "needs a validation"),
        (dict(patience=0, validation=lambda model: 1), "patience = 0"),
        (dict(validation=1.0), "validation is a float"),
        (dict(after_step=1), "after_step is a int"),
        (dict(optimizer="adam"), "optimizer is a str"),
        (dict(optimizer=torch.optim.SGD(network().parameters())), "6 of 6 .* not the model's"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit(**dict(model=network(), loss=error, data=(X, Y)) | change)
