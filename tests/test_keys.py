"""One key, one use: every key of every function that takes one, and its children.

With JAX's default generator `split(key, n)[i]` and `fold_in(key, i)` are one key, so
that a key which is split here and counted upon there is two uses of its children. An
interpreter follows the keys through the program of a function, loops unrolled: a key is
known by the numbers of the children that lead to it from the function's own key.
"""

import collections
import dataclasses
import doctest
import functools
import importlib
import inspect
import itertools
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from specs import SPECS, example_data, random_params

import vae_jax
from vae_jax import (
    aggregate,
    annealing,
    data,
    diagnostics,
    estimators,
    evaluation,
    mcmc,
    model,
    penalties,
    training,
    variational_fit,
)
from vae_jax.contracts import lines
from vae_jax.distributions import BernoulliDistribution
from vae_jax.distributions.support import COUNTS
from vae_jax.estimators import value_only

# The interpreter


class Later:
    """A value of the program that is computed when a key depends on it."""

    def __init__(self, compute):
        self.compute, self.value = compute, None

    def force(self):
        if self.compute is not None:
            self.value, self.compute = self.compute(), None
        return self.value


def force(value):
    return value.force() if isinstance(value, Later) else value


class Uses:
    """The uses of every key, where each derivation of a key is a copy of it.

    Attributes:
      paths: numbers of the children that lead to each copy.
      uses: of each copy, what it was used for: a kind and its details.
    """

    def __init__(self):
        self.paths = [()]
        self.uses = collections.defaultdict(list)

    def children(self, copies, numbers):
        """New copies of the children of those copies with those numbers."""
        found = np.zeros(np.broadcast_shapes(copies.shape, numbers.shape), np.int32)
        pairs = np.broadcast_arrays(copies, numbers)
        for place in np.ndindex(found.shape):
            copy, number = (int(part[place]) for part in pairs)
            found[place] = len(self.paths)
            self.paths.append((*self.paths[copy], number))
        return found

    def use(self, copies, kind, *details):
        for copy in np.ravel(copies):
            self.uses[int(copy)].append((kind, *details))

    def faults(self, *, repeated=False):
        """Keys with a second use, each with its uses.

        A key is for one draw, or for children by name, or for children by number, which
        need not be taken all at once: whose own draws are not two is not a second use.

        Args:
          repeated: allow what is done again in the same way: common random numbers.
        """
        by_path = collections.defaultdict(list)
        for copy, uses in self.uses.items():
            by_path[self.paths[copy]] += uses

        def is_fault(uses):
            is_drawn_again = uses[0][0] == "bits" and len(uses) > 1
            return len(set(uses)) > 1 or (is_drawn_again and not repeated)

        return {path: uses for path, uses in by_path.items() if is_fault(uses)}


def subprograms(equation):
    for parameter in equation.params.values():
        for entry in parameter if isinstance(parameter, tuple | list) else [parameter]:
            if isinstance(entry, ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, Jaxpr):
                yield entry


@functools.cache
def draws(jaxpr):
    """Whether a program or one within it derives or uses a key."""
    return any(
        equation.primitive.name.startswith("random_")
        or any(map(draws, subprograms(equation)))
        for equation in jaxpr.eqns
    )


def follow(uses, program, arguments):
    """The outputs of a program, with every use of a key on the way."""
    jaxpr, constants = program.jaxpr, program.consts
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        outputs = step(uses, equation, inputs)
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def step(uses, equation, inputs):
    """The outputs of one operation."""
    name, parameters = equation.primitive.name, equation.params
    if name in OPERATIONS:
        return OPERATIONS[name](uses, parameters, *inputs)
    if name in CALLS:
        program = parameters[CALLS[name]]
        if not hasattr(program, "consts"):
            program = ClosedJaxpr(program, ())
        return follow(uses, program, inputs)
    if not any(map(draws, subprograms(equation))):
        return postponed(equation, inputs)
    return LOOPS[name](uses, parameters, inputs)


def postponed(equation, inputs):
    """An operation without random numbers: keys are carried by their numbers."""

    @Later
    def outputs():
        values = equation.primitive.bind(*map(force, inputs), **equation.params)
        return values if equation.primitive.multiple_results else [values]

    return [
        Later(lambda index=index: outputs.force()[index])
        for index in range(len(equation.outvars))
    ]


def split(uses, parameters, keys):
    copies = np.asarray(force(keys))
    uses.use(copies, "split", parameters["shape"])
    count = int(np.prod(parameters["shape"]))
    numbers = np.arange(count).reshape(parameters["shape"])
    lifted = copies.reshape(copies.shape + (1,) * numbers.ndim)
    return [jnp.asarray(uses.children(lifted, numbers))]


def fold_in(uses, parameters, keys, numbers):
    copies = np.asarray(force(keys))
    uses.use(copies, "fold_in")
    return [jnp.asarray(uses.children(copies, np.asarray(force(numbers))))]


def bits(uses, parameters, keys):
    copies = np.asarray(force(keys))
    shape = (*copies.shape, *parameters["shape"])
    uses.use(copies, "bits", parameters["shape"], parameters["bit_width"])
    dtype = np.dtype(f"uint{parameters['bit_width']}")
    # No key depends on a draw, but for loops that go on until one is accepted.
    generator = np.random.default_rng(len(uses.paths))
    most = np.iinfo(dtype).max
    return [Later(lambda: jnp.asarray(generator.integers(0, most, shape, dtype)))]


def scan(uses, parameters, inputs):
    if "num_consts" in parameters:
        counts = parameters["num_consts"], parameters["num_carry"]
    else:  # From jax 0.12 on.
        parts = parameters["ft_in"].unpack()
        counts = tuple(len(part.vals) for part in parts[:2])
    constants, carry, rest = cut(inputs, *counts)
    stacked = []
    for index in range(parameters["length"]):
        number = parameters["length"] - 1 - index if parameters["reverse"] else index
        row = [Later(lambda v=v, n=number: force(v)[n]) for v in rest]
        outputs = follow(uses, parameters["jaxpr"], [*constants, *carry, *row])
        carry, out = cut(outputs, counts[1])
        stacked.append(out)
    if parameters["reverse"]:
        stacked.reverse()
    together = [
        Later(lambda column=column: jnp.stack([*map(force, column)]))
        for column in zip(*stacked, strict=True)
    ]
    return [*carry, *together]


def while_loop(uses, parameters, inputs):
    counts = parameters["cond_nconsts"], parameters["body_nconsts"]
    of_condition, of_body, carry = cut(inputs, *counts)
    for _ in range(10_000):
        (going,) = follow(uses, parameters["cond_jaxpr"], [*of_condition, *carry])
        if not force(going):
            return carry
        carry = follow(uses, parameters["body_jaxpr"], [*of_body, *carry])
    raise AssertionError("a loop does not end")


def conditional(uses, parameters, inputs):
    branch = parameters["branches"][int(force(inputs[0]))]
    return follow(uses, branch, inputs[1:])


def cut(values, *counts):
    ends = [0, *itertools.accumulate(counts), len(values)]
    return [list(values[start:end]) for start, end in itertools.pairwise(ends)]


CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
OPERATIONS = {"random_split": split, "random_fold_in": fold_in, "random_bits": bits}
LOOPS = {"scan": scan, "while": while_loop, "cond": conditional}


def uses_of(function):
    """The uses of the key of `function(key)` and of its children."""
    uses = Uses()
    program = jax.make_jaxpr(function)(jax.random.key(0))
    follow(uses, program, [jnp.zeros((), jnp.int32)])
    return uses


def faults(function, *, repeated=False):
    """Keys with a second use in `function(key)`, by their path from its key."""
    uses = uses_of(function)
    assert uses.uses, "no key is used"
    return uses.faults(repeated=repeated)


# The interpreter finds what it is to find


def both(one, other):
    return lambda key: (one(key), other(key))


def folded(function, number):
    return lambda key: function(jax.random.fold_in(key, number))


def child(function, number, count=2):
    return lambda key: function(jax.random.split(key, count)[number])


def in_a_loop(key):
    def body(index, total):
        return total + jax.random.normal(jax.random.fold_in(key, index % 2))

    return jax.lax.fori_loop(0, 3, body, 0.0)


draw = jax.random.normal
WRONG = {
    "drawn twice": both(draw, draw),
    "drawn and split": both(draw, child(draw, 0)),
    "split in two and in three": both(child(draw, 0, 2), child(draw, 1, 3)),
    "split and counted upon": both(child(draw, 1), folded(draw, 0)),
    "a child of both": both(child(draw, 1), folded(draw, 1)),
    "a number twice": both(folded(draw, 1), folded(draw, 1)),
    "a number of a loop twice": in_a_loop,
    "under vmap": lambda key: (
        jax.vmap(folded(draw, 0))(key[None])
        + jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(jnp.arange(3))
    ),
}


@pytest.mark.parametrize("function", WRONG.values(), ids=WRONG)
def test_a_second_use_is_found(function):
    assert faults(function)


RIGHT = {
    "split": both(child(draw, 0), child(draw, 1)),
    "counted": both(folded(draw, 0), folded(draw, 1)),
    "counted on a child": both(child(draw, 0), child(folded(draw, 0), 1)),
    "a child of a child": both(child(draw, 1), child(child(draw, 0), 0)),
    "shuffled": lambda key: jax.random.permutation(key, 5000),
}


@pytest.mark.parametrize("function", RIGHT.values(), ids=RIGHT)
def test_one_use_is_no_fault(function):
    assert not faults(function)


# The functions of the library


SPEC = dict(SPECS)["linear-gaussian"]
DEEP = dict(SPECS)["three-stochastic-layers"]
PARAMS, LAYERED = random_params(SPEC), random_params(DEEP)
X = jnp.asarray(example_data(SPEC))
GAUSSIAN = vae_jax.encode(PARAMS, X)
BITS = BernoulliDistribution(GAUSSIAN.mean)
BOUND = {"num_samples": 4, "reduction": estimators.log_mean_exp}
SHORT = {"num_chains": 2, "num_temperatures": 4, "num_leapfrog": 2}
CHAIN = {"num_samples": 4, "num_warmup": 2}
ADAM = optax.adam(1e-3)
MANY = 3000  # Examples enough that their order is drawn in two rounds.


def square(z, log_q):
    return jnp.sum(z**2, axis=-1) - log_q


def density(z):
    return -jnp.sum(z**2)


def estimated(name, posterior, **options):
    return functools.partial(getattr(estimators, name), square, posterior, **options)


def called(function, *arguments, **options):
    """`function(*arguments, key)` of the key."""
    return lambda key: function(*arguments, key, **options)


def objective(make, params=PARAMS, **options):
    def gradient(key):
        value = make(**options)
        return jax.grad(lambda p: value(p, X, key, jnp.asarray(0))[0])(params)

    return gradient


def trained(key, *, num_devices=1):
    """Two epochs; the root of the noise is that of the order, too."""
    state = vae_jax.init_state(PARAMS, key, optimizer=ADAM)
    alone = num_devices == 1
    penalty = vae_jax.total_correlation(2.0) if alone else vae_jax.free_bits(0.1)
    step = functools.partial(
        vae_jax.train_step,
        objective=vae_jax.elbo_objective(penalty=penalty),
        optimizer=ADAM,
        preprocess=lambda x, key: jax.random.bernoulli(key, 0.5, x.shape),
    )
    for number in range(2):
        epoch = vae_jax.shuffled_epoch(key, number, num_examples=4, batch_size=2)
        history = vae_jax.empty_history(step, state, epoch, X, first_step=2 * number)
        if alone:
            run = functools.partial(vae_jax.train_epoch, step=step)
            state, _ = run(state, epoch, X, history, 2)
            continue
        shares = vae_jax.shard_epoch(epoch, num_devices)
        run = functools.partial(vae_jax.train_epoch, step=step, axis_name="device")
        state, _ = jax.vmap(
            lambda share, s=state, h=history, run=run: run(s, share, X, h, 2),
            axis_name="device",
        )(shares)
        state = jax.tree.map(lambda leaf: leaf[0], state)
    vae_jax.shuffled_epoch(key, 2, num_examples=MANY, batch_size=2)
    return state.params


def swept(key):
    """An epoch of two models, each with a root of its own."""
    init_key, *roots = jax.random.split(key, 3)
    params, roots = vae_jax.init(SPEC, init_key), jnp.stack(roots)
    start = functools.partial(vae_jax.init_state, params, optimizer=ADAM)
    states = dataclasses.replace(jax.vmap(start)(roots), step=jnp.zeros((), jnp.int32))

    def step(state, batch, beta):
        objective = vae_jax.elbo_objective(beta=beta)
        return vae_jax.train_step(state, batch, objective=objective, optimizer=ADAM)

    order = functools.partial(
        vae_jax.shuffled_epoch, epoch=0, num_examples=4, batch_size=2
    )
    epochs, betas = jax.vmap(order)(roots), jnp.ones(2)
    history = vae_jax.empty_sweep_history(step, states, epochs, X, betas)
    states, _ = vae_jax.sweep_epoch(states, epochs, X, history, 2, betas, step=step)
    return states.params


def of_a_spec(spec):
    """Every family's part in it, by children of the key."""
    x = jnp.asarray(example_data(spec))
    # JAX draws Poisson counts by loops that seldom end with the draws made up here.
    sample = spec.likelihood.support != COUNTS

    def run(key):
        keys = jax.random.split(key, 4)
        params = vae_jax.init(spec, keys[0])
        found = [
            vae_jax.elbo(params, x, keys[1], estimator=value_only),
            vae_jax.reconstruct(params, x, keys[2], sample=sample),
            vae_jax.generate(params, keys[3], num_samples=2, sample=sample),
        ]
        return found

    return run


def conditional(key):
    spec = vae_jax.ModelSpec(
        vae_jax.Linear(),
        vae_jax.Linear(),
        prior=vae_jax.ClassConditionalPrior(3),
        latent_dim=2,
        data_shape=(5,),
        num_classes=3,
    )
    init_key, own = jax.random.split(key)
    params, labels = vae_jax.init(spec, init_key), jnp.arange(3)
    return vae_jax.generate(params, own, num_samples=3, sample=True, labels=labels)


def gibbs(key):
    conditional = mcmc.bit_conditional(density)
    return mcmc.gibbs(conditional, jnp.zeros(2), key, **CHAIN)


def metropolis(key):
    walk = mcmc.random_walk(0.5)
    return mcmc.metropolis_hastings(density, jnp.zeros(2), key, proposal=walk, **CHAIN)


walking = functools.partial(mcmc.metropolis_hastings, proposal=mcmc.random_walk(0.5))


def evaluated(key):
    """All that is asked of a trained model, with one root."""
    return [
        vae_jax.evaluate(PARAMS, X, key),
        vae_jax.log_evidence(PARAMS, X, key, num_samples=3),
        vae_jax.annealed_log_evidence(PARAMS, X, key, **SHORT),
        vae_jax.reverse_annealed_log_evidence(PARAMS, X, GAUSSIAN.mean, key, **SHORT),
        vae_jax.bidirectional_log_evidence(PARAMS, key, num_examples=2, **SHORT),
        mcmc.posterior_samples(PARAMS, X, key, sampler=walking, **CHAIN, num_chains=2),
        annealing.annealed_posterior_samples(PARAMS, X, key, num_samples=2, **SHORT),
    ]


ONE_USE = {
    "init, generate": conditional,
    "reconstruct": called(vae_jax.reconstruct, PARAMS, X, sample=True),
    "reparameterize": lambda key: vae_jax.reparameterize(GAUSSIAN, key, num_samples=3),
    "elbo": called(vae_jax.elbo, PARAMS, X, kl="monte_carlo", num_samples=2),
    "elbo_terms": called(vae_jax.elbo_terms, LAYERED, X, num_samples=2),
    "importance_weighted_bound": called(
        vae_jax.importance_weighted_bound, LAYERED, X, num_samples=4
    ),
    "evaluate": called(vae_jax.evaluate, LAYERED, X, num_samples=2, chunk_size=3),
    "log_evidence": called(
        vae_jax.log_evidence, LAYERED, X, num_samples=5, chunk_size=2
    ),
    "annealed_log_evidence, reverse_annealed_log_evidence, "
    "bidirectional_log_evidence, posterior_samples, "
    "annealed_posterior_samples": evaluated,
    "active_units": lambda key: vae_jax.active_units(LAYERED, X, key=key),
    "aggregate_posterior": called(vae_jax.aggregate_posterior, PARAMS, X),
    "kl_decomposition": called(aggregate.kl_decomposition, PARAMS, GAUSSIAN),
    "posterior_mmd": called(aggregate.posterior_mmd, PARAMS, GAUSSIAN),
    "impute": called(vae_jax.impute, PARAMS, X, num_samples=3, num_draws=2),
    "posterior_predictive": called(
        vae_jax.posterior_predictive, PARAMS, X, num_replications=2
    ),
    "draw_prior": called(model.draw_prior, PARAMS, num_samples=3),
    "elbo_objective": objective(vae_jax.elbo_objective),
    "elbo_objective, a penalty that draws": objective(
        vae_jax.elbo_objective,
        penalty=vae_jax.maximum_mean_discrepancy(1.0),
        estimator=estimators.mean_baseline,
    ),
    "importance_weighted_objective": objective(
        vae_jax.importance_weighted_objective, num_samples=4
    ),
    "importance_weighted_objective, another gradient": objective(
        vae_jax.importance_weighted_objective,
        num_samples=4,
        estimator=estimators.doubly_reparameterized,
    ),
    "run_keys": lambda key: [*map(draw, vae_jax.run_keys(key))],
    "evaluation_keys": lambda key: [*map(draw, evaluation.evaluation_keys(key))],
    "example_keys": lambda key: jax.vmap(draw)(evaluation.example_keys(key, 3)),
    "importance_weighted_terms": called(
        vae_jax.importance_weighted_terms, LAYERED, X, num_samples=4
    ),
    "fit": called(
        vae_jax.fit, PARAMS, X, num_epochs=2, batch_size=2, preprocess=data.binarize
    ),
    "init_state, shuffled_epoch": trained,
    "init_state, shuffled_epoch, two devices": functools.partial(
        trained, num_devices=2
    ),
    "init_state, shuffled_epoch, two models": swept,
    "gradient_moments": lambda key: estimators.gradient_moments(
        draw, key, num_draws=5, chunk_size=2
    ),
    **{
        name: estimated(name, GAUSSIAN, num_samples=4)
        for name in (
            "value_only",
            "reparameterization",
            "path_derivative",
            "score_function",
            "mean_baseline",
            "leave_one_out",
            "optimal_baseline",
            "delta_control_variate",
            "measure_valued",
        )
    },
    "doubly_reparameterized": estimated("doubly_reparameterized", GAUSSIAN, **BOUND),
    **{
        name: estimated(name, BITS)
        for name in ("gumbel_softmax", "straight_through", "rebar", "arm", "disarm")
    },
    "gibbs": gibbs,
    "metropolis_hastings": metropolis,
    "map_examples": lambda key: evaluation.map_examples(
        lambda x, key: jax.random.normal(key), (X,), key, first=0, examples_at_once=2
    ),
    "hmc": lambda key: mcmc.hmc(density, jnp.zeros(2), key, num_leapfrog=2, **CHAIN),
    "nuts": lambda key: mcmc.nuts(density, jnp.zeros(2), key, **CHAIN),
    "binarize": called(data.binarize, X),
}
# What they are meant to compare they take with the same noise.
SAME_NOISE = {
    "fit_posterior": called(vae_jax.fit_posterior, PARAMS, X, num_steps=3),
    "inference_gap": called(
        vae_jax.inference_gap, PARAMS, X, num_steps=2, num_samples=2
    ),
    "partially_importance_weighted_bound, partially_importance_weighted_terms": called(
        vae_jax.partially_importance_weighted_bound,
        PARAMS,
        X,
        num_samples=4,
        num_groups=2,
    ),
}


def cases(table, *slow):
    return [
        pytest.param(case, id=name, marks=pytest.mark.slow if name in slow else [])
        for name, case in table.items()
    ]


@pytest.mark.long
@pytest.mark.parametrize("function", cases(ONE_USE, "nuts"))
def test_every_key_has_one_use(function):
    assert not faults(function)


def test_every_key_of_a_spec_has_one_use(spec):
    assert not faults(of_a_spec(spec))


@pytest.mark.long
@pytest.mark.parametrize("function", SAME_NOISE.values(), ids=SAME_NOISE)
def test_a_second_use_for_comparison_is_the_first_again(function):
    assert faults(function)
    assert not faults(function, repeated=True)


UNUSED = {
    # Its networks are deterministic: the key goes no further.
    "with_network_key": called(model.with_network_key, PARAMS),
    "exact_enumeration": estimated("exact_enumeration", BITS),
    "sigma_points": estimated("sigma_points", GAUSSIAN),
    "mean_kl": lambda key: penalties.mean_kl(PARAMS, GAUSSIAN, jnp.ones(4), key, 0),
}


@pytest.mark.parametrize("function", UNUSED.values(), ids=UNUSED)
def test_what_draws_nothing_uses_no_key(function):
    assert not uses_of(function).uses


# Functions of NumPy arrays, which no program shows


DIGITS = data.load("digits")
ON_THE_HOST = {
    "binarize_dataset": called(
        data.binarize_dataset,
        DIGITS._replace(train=DIGITS.train[:3], test=DIGITS.test[:3]),
        method="fixed",
    ),
    "fit_mixture_prior": called(vae_jax.fit_mixture_prior, PARAMS, X, num_components=2),
    "check": called(lines.check, PARAMS, X, num_samples=100),
}


@pytest.mark.parametrize("function", cases(ON_THE_HOST, "check"))
def test_a_key_on_the_host_is_split_or_counted_upon_once(function, monkeypatch):
    kinds = collections.defaultdict(collections.Counter)

    def recorded(derive):
        def call(key, number=2):
            if not isinstance(key, jax.core.Tracer):
                name = derive.__name__, number if derive is before[0] else None
                kinds[jax.random.key_data(key).tobytes()][name] += 1
            return derive(key, number)

        return call

    before = jax.random.split, jax.random.fold_in
    for derive in before:
        monkeypatch.setattr(jax.random, derive.__name__, recorded(derive))
    function(jax.random.key(0))
    assert all(len(kind) == 1 for kind in kinds.values()), kinds


def test_every_public_function_of_a_key_is_here():
    tables = (ONE_USE, SAME_NOISE, UNUSED, ON_THE_HOST)
    covered = {name for table in tables for case in table for name in case.split(", ")}
    modules = (vae_jax, aggregate, annealing, lines, data, diagnostics, estimators)
    modules += (evaluation, mcmc, model, penalties, training, variational_fit)
    public = {
        function
        for module in modules
        for name in getattr(module, "__all__", dir(module))
        if inspect.isfunction(function := getattr(module, name)) and name[0] != "_"
        if function.__module__.startswith(module.__name__) and name == function.__name__
    }
    takes_one = {f.__name__ for f in public if "key" in inspect.signature(f).parameters}
    assert takes_one <= covered, takes_one - covered


# What is read


README = Path(__file__).parents[1] / "README.md"
MODULES = [
    module.name for module in pkgutil.walk_packages(vae_jax.__path__, "vae_jax.")
]


def examples():
    """The code of the README, and that of each docstring."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    yield "README.md", "".join(blocks)
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in MODULES:
        for test in finder.find(importlib.import_module(module)):
            yield test.name, "".join(example.source for example in test.examples)


def test_no_two_things_of_an_example_have_one_root():
    for name, code in examples():
        seeds = re.findall(r"random\.key\((\w+)\)", code)
        assert len(seeds) == len(set(seeds)), name
