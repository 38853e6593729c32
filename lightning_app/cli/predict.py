"""predict: a trained network writes.

The text, prompt included, goes to standard output, and as it is made where one text is written.
"""

import secrets
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from tqdm import tqdm

from lightning_app.cli.configs import config_group, split_configs
from lightning_app.cli.loading import add_run_arguments, load_run
from lightning_app.cli.parsing import Parser
from lightning_app.data.splits import SplitText
from lightning_app.errors import UserError
from lightning_app.evaluation.overlap import WindowIndex, find_windows, passages
from lightning_app.generation.cpu_engine import WeightFormat
from lightning_app.generation.generate import MAX_BATCH, generate_text
from lightning_app.generation.sampling import SAMPLING_OPTIONS, GenerateOptions
from lightning_app.runs.checkpoint import TrainedModel

SEPARATOR = "---"
SPAN = 50  # characters; shorter ones are how language is


def make_parser() -> Parser:
    parser = Parser(prog="main.py predict", description=__doc__)
    add = parser.add_argument
    add_run_arguments(parser)
    add("--prompt", type=str, default="", help="Text to go on from; empty starts from nothing.")
    add("--prompt_file", type=str | None, help="A UTF-8 file as the prompt; - is standard input.")
    add("--prompt_lines", type=bool, default=False, help="Each line of the file is a prompt.")
    add("--num_samples", type=PositiveInt, default=1, help="Texts for each prompt.")
    add("--seed_everything", type=NonNegativeInt | None, help="The same text again.")
    add(
        "--check_overlap",
        type=bool,
        default=False,
        help=f"Say which spans of {SPAN} characters and more stand in the training text.",
    )
    add(
        "--weights",
        type=WeightFormat,
        default="float32",
        help="On a CPU: smaller ones write faster, and round.",
    )
    parser.add_class_arguments(GenerateOptions)
    return parser


def main(argv: list[str]) -> int:
    configs, rest = split_configs(join_texts(argv))
    trainer_flags = [a for a in rest if a.startswith("--trainer")]
    generate = config_group(configs, "generate")
    parser = make_parser()
    if trainer_flags:
        from lightning_app.cli.trainer_flags import add_trainer_flags

        add_trainer_flags(parser)
        parser.set_defaults({"trainer.enable_progress_bar": False})  # one batch: nothing to show

    def parse(defaults: dict[str, Any]) -> tuple[Any, GenerateOptions]:
        config = parser.parse_args(with_defaults_from(defaults, rest))
        options = GenerateOptions(**{f.name: config[f.name] for f in fields(GenerateOptions)})
        return config, options.resolve()

    config, options = parse(generate)
    prompts = read_prompts(config)
    trained = load_run(config, configs).trained
    if not generate:  # the run's own
        config, options = parse(trained.generation)
    for prompt in prompts:
        trained.tokenizer.encode(prompt, "the prompt")  # raises before anything is printed
    if config.weights != "float32" and trainer_flags:
        raise UserError(f"--weights {config.weights} is not for --trainer flags; leave them out")
    training = training_text(trained) if config.check_overlap else None
    seed = config.seed_everything
    if seed is None:
        seed = secrets.randbelow(2**32)
        print(f"seed {seed} (--seed_everything {seed} writes this again)", file=sys.stderr)
    if trainer_flags:
        texts = predict_with_trainer(parser, config, trained, prompts, options, seed)
        print(f"\n{SEPARATOR}\n".join(texts))
        say_overlaps(trained, texts, training)
        return 0
    if torch.cuda.is_available() and config.weights == "float32":
        trained.gpt.cuda()
    texts = write(trained, prompts, options, seed, config.num_samples, config.weights)
    say_overlaps(trained, texts, training)
    return 0


def join_texts(argv: list[str]) -> list[str]:
    """`--prompt -x` as `--prompt=-x`: a text may look like an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--prompt", "--stop"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def with_defaults_from(generate: dict[str, Any], rest: list[str]) -> list[str]:
    """A `generate:` group, of the config or else of the run, as defaults. Choosing a sampling on
    the command line drops all four of its options for that: they are one decision."""
    names = [f.name for f in fields(GenerateOptions)]
    if unknown := [k for k in generate if k not in names]:
        raise UserError(f"there is no generate.{unknown[0]}; use one of {', '.join(names)}")
    chosen = {a.split("=")[0].removeprefix("--") for a in rest} & SAMPLING_OPTIONS
    dropped = SAMPLING_OPTIONS if chosen else frozenset()
    defaults = {k: v for k, v in generate.items() if v is not None and k not in dropped}
    return [*(f"--{k}={v}" for k, v in defaults.items()), *rest]


def read_prompts(config: Any) -> list[str]:
    if config.prompt_file is None:
        if config.prompt_lines:
            raise UserError("--prompt_lines true needs --prompt_file")
        return [config.prompt]
    if config.prompt:
        raise UserError("--prompt and --prompt_file contradict each other; leave one out")
    name = config.prompt_file
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt_file {name} is not UTF-8 at offset {error.start}") from None
    except OSError as error:
        raise UserError(
            f"--prompt_file {name}: {(error.strerror or str(error)).lower()}; check the path"
        ) from None
    if not config.prompt_lines:
        return [text]
    lines = text.split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise UserError(f"--prompt_file {name} is empty, so it has no prompts")
    return lines


def write(
    trained: TrainedModel,
    prompts: list[str],
    options: GenerateOptions,
    seed: int,
    num_samples: int,
    weights: WeightFormat,
) -> list[str]:
    """Generate and print: a single text as it is made, several one after the other. Returns them,
    prompts included."""
    count = len(prompts) * num_samples
    several = count > 1
    bar = tqdm(
        total=options.max_new_tokens * -(-count // MAX_BATCH),
        desc="writing",
        unit="character",
        delay=2,
        leave=False,
        file=sys.stderr,
        disable=not several or not sys.stderr.isatty(),
    )

    def show(new: list[str]) -> None:
        bar.update()
        if not several:
            sys.stdout.write(new[0])
            if sys.stdout.isatty():
                sys.stdout.flush()

    if not several:
        sys.stdout.write(prompts[0])
    starts = (prompt for prompt in prompts for _ in range(num_samples))
    completed = generate_text(
        trained.gpt,
        trained.tokenizer,
        prompts,
        options,
        seed,
        num_samples,
        trained.unigram,
        show,
        weights,
    )
    texts: list[str] = []
    for start, text in zip(starts, completed, strict=True):
        if several:
            sys.stdout.write(f"\n{SEPARATOR}\n" * bool(texts) + start + text)
        texts.append(start + text)
    bar.close()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return texts


def training_text(trained: TrainedModel) -> SplitText:
    """The text a network was trained on. Raises UserError where it is gone or another one."""
    split_text = trained.source().read()
    if split_text.text.fingerprint != trained.data["fingerprint"]:
        raise UserError(
            f"--check_overlap: the corpus {trained.data['corpus']} has changed since the run was "
            "trained"
        )
    return split_text


def say_overlaps(trained: TrainedModel, texts: list[str], training: SplitText | None) -> None:
    """On standard error, the spans of each text that stand word for word in the training text."""
    if training is None:
        return
    indexes = [
        WindowIndex(trained.tokenizer.encode(trained.tokenizer.drop_invalid(t)), SPAN)
        for t in texts
    ]
    spans = [passages(where, SPAN) for where in find_windows(indexes, training.ids("train"))]
    for number, (index, of_text) in enumerate(zip(indexes, spans, strict=True), 1):
        for span in of_text:
            copied = trained.tokenizer.decode(index.ids[span.first : span.last])
            print(
                f"text {number}, characters {span.first:,} to {span.last:,} stand in the training "
                f"text at {span.elsewhere:,}: {copied!r}",
                file=sys.stderr,
            )
    if not any(spans):
        print(f"no span of {SPAN} characters stands in the training text", file=sys.stderr)


def predict_with_trainer(
    parser: Parser,
    config: Any,
    trained: TrainedModel,
    prompts: list[str],
    options: GenerateOptions,
    seed: int,
) -> list[str]:
    """The same texts by `trainer.predict`, for its devices and precisions."""
    from torch.utils.data import DataLoader, Dataset

    from lightning_app.cli.trainer_flags import make_trainer
    from lightning_app.training.module import CharGPT

    model = CharGPT(
        **trained.arguments,
        counts=trained.info["counts"],
        generation=options,
        seed=seed,
        num_samples=config.num_samples,
        gpt=trained.gpt,
    )
    trainer = make_trainer(dict(parser.instantiate(config).trainer))
    if trainer.world_size > 1:
        raise UserError("predict writes on one device; use --trainer.devices 1")
    loader: DataLoader[str] = DataLoader(
        cast("Dataset[str]", prompts),  # a list is one
        batch_size=len(prompts),
        collate_fn=list,
    )
    predictions = trainer.predict(model, dataloaders=loader)
    if not predictions:
        raise UserError("--trainer.limit_predict_batches leaves nothing to write; leave it out")
    return predictions[0]
