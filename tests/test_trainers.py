"""The trainers people use, really run: pip install '.[trainers]' && pytest -m trainers

Each trains a small model on data made on the spot with gradient accumulation and clipping as the library applies them: the
loss goes down, the result is that of torch.optim, and a run that was interrupted ends where an uninterrupted one does.
"""

import importlib.util
import warnings

import pytest
import torch
from helpers import flat

import compiledopt
from compiledopt import lr_scheduler, schedules

pytestmark = pytest.mark.trainers


def needs(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed; the extra `trainers` brings it")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def data(count=64):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(3))
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True).tanh())


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def loader():
    return torch.utils.data.DataLoader(data(), batch_size=8)


def close(first, second, tolerance=1e-5):
    assert (flat(first.parameters()) - flat(second.parameters())).abs().max() <= tolerance
    assert (flat(first.parameters()) - flat(network().parameters())).abs().max() > 0.01


# ---- Lightning ----


KEPT = {"state_dtype": "int8", "min_quantized_numel": 0}


def module_class():
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, library=compiledopt, scheduler="epoch"):
            super().__init__()
            self.net, self.library, self.scheduler, self.losses = network(), library, scheduler, []

        def training_step(self, batch, index):
            loss = torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            if self.scheduler != "epoch":
                options = {"max_grad_norm": 1.0, "ema_decay": 0.9} | (KEPT if self.scheduler == "inside, int8" else {})
                return compiledopt.AdamW(self.parameters(), lr=0.02 * schedules.exponential(0.95), **options)
            optimizer = self.library.AdamW(self.parameters(), lr=0.02)
            return [optimizer], [lr_scheduler.StepLR(optimizer, 1, 0.8)]

    return Module


def trainer(folder, epochs, **options):
    import lightning

    more = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    more |= {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "default_root_dir": folder}
    return lightning.Trainer(max_epochs=epochs, **{**more, **options})


@needs("lightning")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_lightning(tmp_path, precision):
    runs = []
    for library in (compiledopt, torch.optim):
        module = module_class()(library)
        trainer(tmp_path, 4, precision=precision, enable_checkpointing=False).fit(module, loader())
        runs.append(module)
    assert sum(runs[0].losses[-8:]) < 0.7 * sum(runs[0].losses[:8])
    assert runs[0].trainer.optimizers[0].executor == "compiled"
    # bf16-true: the parameters themselves are bfloat16, and torch rounds several times a step where we round once.
    close(runs[0].net, runs[1].net, {"bf16-true": 0.1, "64-true": 1e-9}.get(precision, 1e-4))


@needs("lightning")
@pytest.mark.parametrize("scheduler", ["epoch", "inside", "inside, int8"])
def test_lightning_resumes(tmp_path, scheduler):
    options = {} if scheduler == "epoch" else {"gradient_clip_val": None}
    straight = module_class()(scheduler=scheduler)
    trainer(tmp_path / "a", 6, enable_checkpointing=False, **options).fit(straight, loader())
    first = module_class()(scheduler=scheduler)
    half = trainer(tmp_path / "b", 3, enable_checkpointing=False, **options)
    half.fit(first, loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = module_class()(scheduler=scheduler)
    trainer(tmp_path / "c", 6, enable_checkpointing=False, **options).fit(
        resumed, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False
    )
    assert torch.equal(flat(straight.net.parameters()), flat(resumed.net.parameters()))
    assert not torch.equal(flat(first.net.parameters()), flat(resumed.net.parameters()))


@needs("lightning")
def test_fabric(tmp_path):
    from lightning.fabric import Fabric

    def run(library, steps, load=None, save=None):
        fabric = Fabric(accelerator="cpu", devices=1)
        net, optimizer = network(), None
        optimizer = library.AdamW(net.parameters(), lr=0.02)
        net, optimizer = fabric.setup(net, optimizer)
        batches = fabric.setup_dataloaders(loader())
        if load:
            fabric.load(load, {"net": net, "optimizer": optimizer})
        losses = []
        for number, (x, y) in enumerate(batch for _ in range(4) for batch in batches):
            if number not in steps:
                continue
            with fabric.no_backward_sync(net, enabled=number % 2 == 0):
                loss = torch.nn.functional.mse_loss(net(x), y)
                fabric.backward(loss)
            losses.append(loss.item())
            if number % 2:
                fabric.clip_gradients(net, optimizer, max_norm=0.5)
                optimizer.step()
                optimizer.zero_grad()
        if save:
            fabric.save(save, {"net": net, "optimizer": optimizer})
        return net, losses

    straight, losses = run(compiledopt, range(32))
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
    close(straight, run(torch.optim, range(32))[0])
    run(compiledopt, range(16), save=tmp_path / "half.ckpt")
    resumed, _ = run(compiledopt, range(16, 32), load=tmp_path / "half.ckpt")
    assert torch.equal(flat(straight.parameters()), flat(resumed.parameters()))


# ---- accelerate ----


@needs("accelerate")
def test_accelerate(tmp_path):
    from accelerate import Accelerator

    def run(library, epochs, load=None, save=None):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        net = network()
        optimizer = library.AdamW(net.parameters(), lr=0.02)
        module = lr_scheduler if library is compiledopt else torch.optim.lr_scheduler
        scheduler = module.CosineAnnealingLR(optimizer, 40)
        net, optimizer, batches, scheduler = accelerator.prepare(net, optimizer, loader(), scheduler)
        if load:
            accelerator.load_state(load)
        losses = []
        for _ in epochs:
            for x, y in batches:
                with accelerator.accumulate(net):
                    loss = torch.nn.functional.mse_loss(net(x), y)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(net.parameters(), 0.5)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                losses.append(loss.item())
        if save:
            accelerator.save_state(save)
        return net, losses, optimizer

    straight, losses, optimizer = run(compiledopt, range(6))
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8]) and optimizer.optimizer.executor == "compiled"
    close(straight, run(torch.optim, range(6))[0])
    run(compiledopt, range(3), save=str(tmp_path / "half"))
    resumed, _, _ = run(compiledopt, range(3, 6), load=str(tmp_path / "half"))
    assert torch.equal(flat(straight.parameters()), flat(resumed.parameters()))


# ---- Transformers ----


def language_model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return GPT2LMHeadModel(config)


class Sentences(torch.utils.data.Dataset):
    """Counting, from anywhere."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        tokens = (torch.arange(16) + index) % 32
        return {"input_ids": tokens, "labels": tokens}


def arguments(folder, steps, **more):
    from transformers import TrainingArguments

    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "report_to": []}
    options |= {"max_steps": steps, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "seed": 0, "save_steps": 10}
    return TrainingArguments(output_dir=str(folder), **{**options, **more})


def train(folder, steps, library=compiledopt, hook=False, resume=None, **kept):
    from transformers import Trainer

    model = language_model()

    class Ours(Trainer):
        def create_optimizer(self, *args, **kwargs):
            lr = 5e-3 * schedules.linear(1.0, 0.1, 20)
            self.optimizer = compiledopt.AdamW(self.model.parameters(), lr=lr, ema_decay=0.9, **kept)
            return self.optimizer

        def create_scheduler(self, num_training_steps, optimizer=None):
            class Nothing(lr_scheduler.LRScheduler):
                def get_lr(self):
                    return [group["lr"] for group in self.optimizer.param_groups]

            self.lr_scheduler = Nothing(self.optimizer)
            return self.lr_scheduler

    if hook:
        trainer = Ours(model=model, args=arguments(folder, steps), train_dataset=Sentences())
    else:
        optimizer = library.AdamW(model.parameters(), lr=5e-3)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 20)
        trainer = Trainer(
            model=model, args=arguments(folder, steps), train_dataset=Sentences(), optimizers=(optimizer, scheduler)
        )
    trainer.train(resume_from_checkpoint=resume)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return trainer, flat(model.parameters()), losses


@needs("transformers")
@needs("accelerate")
@pytest.mark.parametrize("hook", [False, True], ids=["optimizers=", "subclass"])
def test_transformers(tmp_path, hook):
    trainer, straight, losses = train(tmp_path / "a", 20, hook=hook)
    assert losses[-1] < 0.7 * losses[0]
    assert (getattr(trainer.optimizer, "optimizer", trainer.optimizer)).executor == "compiled"
    if not hook:
        _, torchs, _ = train(tmp_path / "b", 20, torch.optim)
        assert (straight - torchs).abs().max() < 1e-3 * (torchs - flat(language_model().parameters())).abs().max()
    _, resumed, _ = train(tmp_path / "c", 20, hook=hook, resume=str(tmp_path / "a" / "checkpoint-10"))
    assert torch.equal(straight, resumed)


@needs("transformers")
@needs("accelerate")
def test_transformers_with_states_in_8_bits(tmp_path):
    """Resumed bit for bit, near the run in float32, and the checkpoint has codes."""
    _, straight, losses = train(tmp_path / "a", 20, hook=True, **KEPT)
    _, exact, _ = train(tmp_path / "b", 20, hook=True)
    moved = (exact - flat(language_model().parameters())).abs().max()
    assert losses[-1] < 0.7 * losses[0] and 0 < (straight - exact).abs().max() < 0.2 * moved
    saved = torch.load(tmp_path / "a" / "checkpoint-10" / "optimizer.pt", weights_only=True)
    assert {saved["state"][0][name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.int8, torch.uint8}
    _, resumed, _ = train(tmp_path / "c", 20, hook=True, resume=str(tmp_path / "a" / "checkpoint-10"), **KEPT)
    assert torch.equal(straight, resumed)
