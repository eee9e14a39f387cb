"""Every field of a config is an option with its docstring; what is given overrides, what is not stays."""

from dataclasses import dataclass, fields, is_dataclass

import click
import pytest
from click.testing import CliRunner

from pairformer.config import AggregatorConfig, ModelConfig, SelectorConfig, TrainConfig
from pairformer.options import ConfigCommand, config_options, field_docs, overridden

CONFIGS = (TrainConfig(), ModelConfig())


def leaves(config, prefix=""):
    for f in fields(config):
        value = getattr(config, f.name)
        yield from leaves(value, f"{prefix}{f.name}.") if is_dataclass(value) else [prefix + f.name]


def run(*words):
    """A command with the options of some configs -> result, and the configs it got."""
    got = []

    @click.command(cls=ConfigCommand)
    @click.option("--plain", help="Its own.")
    @config_options(*CONFIGS, without=("rng_seed",))
    def command(plain, **options):
        got.extend(overridden(config, options) for config in CONFIGS)

    return CliRunner().invoke(command, [str(word) for word in words]), got


def test_every_field_has_a_docstring():
    for config in CONFIGS:
        parts = [config, *(value for f in fields(config) if is_dataclass(value := getattr(config, f.name)))]
        for part in parts:
            assert {f.name for f in fields(part)} <= set(field_docs(type(part)))


def test_help_names_every_field_once_with_its_default():
    result, _ = run("--help")
    text = " ".join(result.output.split())
    for name in [name for config in CONFIGS for name in leaves(config)]:
        assert text.count(f"--{name.replace('_', '-')} ") == (name != "rng_seed"), name
    assert "--aggregator.width INTEGER Model width d. [default: 64]" in text
    assert "--expensive.channels INT,... Width of the stem and of each residual block. [default: 16,16,32,32]" in text
    assert "stage3: Aggregator on pairs, then both:" in text
    assert "--loss.smoothing FLOAT Labels become smoothing and 1 - smoothing. [default" in text
    assert result.output.index("--plain") < result.output.index("--stage1.epochs")


def test_nothing_given_changes_nothing():
    assert run()[1] == list(CONFIGS)


def test_given_options_override():
    words = ("--stage3.lr", 1e-3, "--budgets", "8,16", "--selector.n-bins", "8,8,16", "--selector.z-normalize", "false",
             "--token", "logit,esa", "--aggregator.kind", "deep_sets")  # fmt: skip
    result, (train, model) = run(*words)
    assert result.exit_code == 0, result.output
    assert (train.stage3.lr, train.stage3.epochs, train.budgets) == (1e-3, TrainConfig().stage3.epochs, (8, 16))
    assert model.selector == SelectorConfig(n_bins=(8, 8, 16), z_normalize=False)
    assert model.token == ("logit", "esa")
    assert model.aggregator == AggregatorConfig(kind="deep_sets")


def test_an_empty_word_is_no_value_at_all():
    result, (train, _) = run("--budgets", "8", "--budgets", "")
    assert (result.exit_code, train.budgets) == (0, ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budgets", "8,x"), "must be int values between commas, got '8,x'"),
        (("--stage1.epochs", "many"), "'many' is not a valid integer"),
        (("--stage9.epochs", "1"), "No such option"),
    ],
)
def test_what_cannot_be_read_is_a_usage_error(words, message):
    result, got = run(*words)
    assert (result.exit_code, got) == (2, [])
    assert message in result.output


def test_out_of_range_names_the_field():
    result, _ = run("--loss.smoothing", 0.7)
    assert isinstance(result.exception, ValueError)
    assert str(result.exception) == "smoothing must be in [0, 0.5), got 0.7"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--distill.temperature", 0, "temperature must be above 0, got 0.0"),
        ("--distill.alpha-end", 3, "alpha_end must be in [0, 1], got 3.0"),
        ("--distill.relation-weight", -1, "relation_weight must not be negative, got -1.0"),
        ("--stage3.clip", -1, "clip must be above 0, got -1.0"),
        ("--stage3.ema-decay", 1, "ema_decay must be in [0, 1), got 1.0"),
        ("--stage3.weight-decay", "nan", "weight_decay must be a finite number, got nan"),
        ("--stage3.lr", "inf", "lr must be a finite number, got inf"),
        ("--sources.decoys", "inf", "decoys must be a finite number, got inf"),
    ],
)
def test_no_number_turns_training_into_something_else(option, value, message):
    assert str(run(option, value)[0].exception) == message


def test_seeds_are_of_32_bits():
    assert TrainConfig(rng_seed=2**32 - 1).rng_seed == 2**32 - 1
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match="rng_seed must be in"):
            TrainConfig(rng_seed=wrong)


def test_inherited_fields():
    @dataclass(frozen=True)
    class Config(AggregatorConfig):
        """A part."""

        more: int = 1
        """Of it."""

    docs = field_docs(Config)
    assert (docs["more"], docs["width"]) == ("Of it.", "Model width d.")
