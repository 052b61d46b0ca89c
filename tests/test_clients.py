"""Libraries that are handed an optimizer or its class, really run: pip install '.[trainers]' && pytest -m trainers

Each trains the same model twice, with torch.optim and with ours; only the name of the library differs.
"""

import importlib.util
import pickle
import warnings

import pytest
import torch
from helpers import flat

import compiledopt

pytestmark = pytest.mark.trainers


def needs(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed; the extra `trainers` brings it")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


X = torch.randn(128, 6, generator=torch.Generator().manual_seed(3))
Y = X.sum(1, keepdim=True).tanh()


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=32)


def compare(trained, start=None):
    """trained: library -> parameters, flat; start: those before."""
    expected, found = trained(torch.optim), trained(compiledopt)
    effect = (expected - (flat(network().parameters()) if start is None else start)).abs().max()
    assert effect > 0.01 and (found - expected).abs().max() <= 1e-3 * effect


@needs("skorch")
def test_skorch():
    import skorch
    from skorch.callbacks import GradientNormClipping, LRScheduler

    def trained(library):
        callbacks = [LRScheduler(policy="StepLR", step_size=1, gamma=0.7), GradientNormClipping(1.0)]
        options = {"lr": 0.01, "optimizer__weight_decay": 0.1, "iterator_train__shuffle": False, "train_split": None}
        made = skorch.NeuralNetRegressor(
            network(), optimizer=library.AdamW, max_epochs=2, verbose=0, callbacks=callbacks, **options
        )
        made.fit(X.numpy(), Y.numpy())
        again = pickle.loads(pickle.dumps(made)).partial_fit(X.numpy(), Y.numpy())
        again.set_params(lr=0.02, optimizer__weight_decay=0.2).partial_fit(X.numpy(), Y.numpy())
        return flat(again.module_.parameters())

    compare(trained)


@needs("ignite")
def test_ignite():
    from ignite.engine import Events, create_supervised_trainer
    from ignite.handlers import CosineAnnealingScheduler, EMAHandler, create_lr_scheduler_with_warmup

    def trained(library):
        model = network()
        optimizer = library.SGD(model.parameters(), lr=0.05, momentum=0.9)
        trainer = create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss, gradient_accumulation_steps=2)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        momentum = CosineAnnealingScheduler(optimizer, "momentum", 0.9, 0.5, 10)
        for handler in (create_lr_scheduler_with_warmup(decay, 0.01, 5, 0.05), momentum):
            trainer.add_event_handler(Events.ITERATION_STARTED, handler)
        averages = EMAHandler(model, 0.1)
        averages.attach(trainer)
        trainer.run(loader(), 3)
        return torch.cat([flat(model.parameters()), flat(averages.ema_model.parameters())])

    compare(trained, torch.cat([flat(network().parameters())] * 2))


@needs("opacus")
def test_opacus():
    from opacus import PrivacyEngine

    def trained(library):
        model = network()
        optimizer = library.AdamW(model.parameters(), lr=0.01)
        torch.manual_seed(1)
        model, optimizer, batches = PrivacyEngine(accountant="rdp").make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader(),
            noise_multiplier=0.5,
            max_grad_norm=1.0,
            poisson_sampling=False,
        )
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        torch.manual_seed(2)
        for _ in range(3):
            for x, y in batches:
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
            scheduler.step()
        optimizer.load_state_dict(optimizer.state_dict())
        return flat(model.parameters())

    compare(trained)


@needs("gpytorch")
def test_gpytorch():
    import gpytorch

    class Process(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(X[:50], Y[:50, 0], likelihood)
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def trained(library, steps=20):
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        model = Process(likelihood)
        model.train()
        optimizer = library.Adam(model.parameters(), lr=0.1)
        likelihood_of = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        for _ in range(steps):
            optimizer.zero_grad()
            (-likelihood_of(model(X[:50]), Y[:50, 0])).backward()
            optimizer.step()
        return flat(model.parameters())

    compare(trained, trained(torch.optim, 0))
