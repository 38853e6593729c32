"""predict: generate text with a trained network.

The text, with its prompt, goes to standard output. A single text appears while it is generated.
Without a prompt, on a terminal, the program asks for prompts: type one and Enter, or /help.
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
from lightning_app.cli.engine_options import add_engine_arguments, check_threads
from lightning_app.cli.loading import add_run_arguments, load_run
from lightning_app.cli.parsing import Parser, instantiate, take_texts
from lightning_app.data.splits import SplitText
from lightning_app.errors import UserError, program
from lightning_app.evaluation.overlap import COPY_LENGTH, WindowIndex, find_windows, passages
from lightning_app.generation.cpu_engine import CPUEngine, WeightFormat
from lightning_app.generation.generate import MAX_BATCH, generate_text, has_cpu_engine
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.runs.checkpoint import TrainedModel

SEPARATOR = "---"
TEXT_OPTIONS = ("--prompt", "--stop")
# With one of these on the command line, predict does not ask for prompts.
NOT_INTERACTIVE = ("prompt", "prompt_file", "prompt_lines", "num_samples", "check_overlap")


def make_parser(with_trainer_flags: bool = False) -> Parser:
    parser = Parser(prog=f"{program()} predict", description=__doc__)
    add = parser.add_argument
    add_run_arguments(parser)
    add(
        "--prompt",
        type=str,
        default="",
        help="Text to continue; if empty, the first character is random. Without this option, on a "
        "terminal, the program asks for prompts.",
    )
    add("--prompt_file", type=str | None, help="UTF-8 file with the prompt; - is standard input.")
    add("--prompt_lines", type=bool, default=False, help="Each line of the file is a prompt.")
    add("--num_samples", type=PositiveInt, default=1, help="Texts for each prompt.")
    add(
        "--seed_everything",
        type=NonNegativeInt | None,
        help="The same seed gives the same text (default: random, and printed).",
    )
    add(
        "--check_overlap",
        type=bool,
        default=False,
        help=f"Report passages of {COPY_LENGTH} or more characters of the training text.",
    )
    add_engine_arguments(parser)
    parser.add_class_arguments(GenerateOptions)
    if with_trainer_flags:
        from lightning_app.cli.trainer_flags import add_trainer_flags

        add_trainer_flags(parser)
        parser.set_defaults({"trainer.enable_progress_bar": False})  # there is only one batch
    return parser


def main(argv: list[str]) -> int:
    texts, rest = take_texts(argv, TEXT_OPTIONS)
    configs, rest = split_configs(rest)
    with_trainer = any(a.startswith("--trainer") for a in rest)
    parser = make_parser(with_trainer)
    config = parser.parse_args(rest)
    given = given_options(parser, rest)
    config.prompt = texts.get("prompt", config.prompt)
    given |= {name: text for name, text in texts.items() if name == "stop"}
    defaults = config_group(configs, "generate")
    options = GenerateOptions().updated(**defaults).updated(**given)
    options.resolve()  # raises before anything is read
    prompts = read_prompts(config)
    trained = load_run(config, configs).trained
    if not defaults:  # those of the run
        options = GenerateOptions().updated(**trained.generation).updated(**given)
    resolved = options.resolve()
    for prompt in prompts:
        trained.tokenizer.encode(prompt, "the prompt")  # raises before anything is printed
    if config.weights != "float32" and with_trainer:
        raise UserError(f"--weights {config.weights} is not for --trainer flags; leave them out")
    if config.threads and with_trainer:
        raise UserError("--threads is not for --trainer flags; leave it out")
    check_threads(config)
    if not with_trainer and asks_for_prompts(parser, rest, texts):
        return converse(trained, options, config)
    training = training_text(trained) if config.check_overlap else None
    seed = config.seed_everything
    if seed is None:
        seed = secrets.randbelow(2**32)
        print(f"seed {seed} (--seed_everything {seed} generates this text again)", file=sys.stderr)
    if with_trainer:
        generated = predict_with_trainer(parser, config, trained, prompts, resolved, seed)
        print(f"\n{SEPARATOR}\n".join(generated))
    else:
        move_to_gpu(trained, config.weights)
        generated = print_texts(
            trained, prompts, resolved, seed, config.num_samples, config.weights, config.threads
        )
    if training is not None:
        report_copies(trained, generated, training)
    return 0


def given_options(parser: Parser, arguments: list[str]) -> dict[str, Any]:
    """The options of generation that are on the command line."""
    names = {f.name for f in fields(GenerateOptions)}
    given = parser.parse_args(arguments, defaults=False)
    return {name: value for name, value in given.items() if name in names}


def asks_for_prompts(parser: Parser, arguments: list[str], texts: dict[str, str]) -> bool:
    """Whether the program asks for prompts: a person is at the terminal, and none of
    NOT_INTERACTIVE is on the command line (`arguments`, and `texts` that were taken from it)."""
    given = {*parser.parse_args(arguments, defaults=False).keys(), *texts}
    terminal = all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout))
    return terminal and given.isdisjoint(NOT_INTERACTIVE)


def converse(trained: TrainedModel, options: GenerateOptions, config: Any) -> int:
    """Ask for prompts and continue them until the user ends it."""
    from lightning_app.cli.interactive import COMMANDS, Conversation
    from lightning_app.cli.line_editor import LineEditor, history_file

    move_to_gpu(trained, config.weights)
    engine = None
    if has_cpu_engine(trained.gpt):
        engine = CPUEngine(trained.gpt, 1, config.weights, config.threads)
    editor = LineEditor(COMMANDS, history_file())
    Conversation(trained, options, config.seed_everything, engine, editor.read).run()
    return 0


def move_to_gpu(trained: TrainedModel, weights: WeightFormat) -> None:
    """Use a GPU if there is one; the smaller formats of weights are for a CPU."""
    if torch.cuda.is_available() and weights == "float32":
        trained.gpt.cuda()


def read_prompts(config: Any) -> list[str]:
    """The prompts of --prompt or --prompt_file.

    Raises UserError for a file that cannot be read, is empty or not UTF-8, and if both are given.
    """
    if config.prompt_file is None:
        if config.prompt_lines:
            raise UserError("--prompt_lines true needs --prompt_file")
        return [config.prompt]
    if config.prompt:
        raise UserError("--prompt and --prompt_file contradict each other; leave one out")
    name = config.prompt_file
    try:
        if name == "-" and sys.stdin is None:
            raise UserError("--prompt_file -: there is no standard input; give a file or --prompt")
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


def print_texts(
    trained: TrainedModel,
    prompts: list[str],
    options: GenerateOptions,
    seed: int,
    num_samples: int,
    weights: WeightFormat,
    threads: int | None,
) -> list[str]:
    """Generate texts and print them, a single one while it is generated. Returns them, with their
    prompts."""
    count = len(prompts) * num_samples
    several = count > 1
    bar = tqdm(
        total=options.max_new_tokens * -(-count // MAX_BATCH),
        desc="generating",
        unit="character",
        delay=2,
        leave=False,
        file=sys.stderr,
        disable=not several or not sys.stderr.isatty(),
    )

    unprinted = "" if several else prompts[0]  # until the first characters: compiling is said first

    def show(new: list[str]) -> None:
        nonlocal unprinted
        bar.update()
        if not several:
            sys.stdout.write(unprinted + new[0])
            unprinted = ""
            if sys.stdout.isatty():
                sys.stdout.flush()

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
        threads,
    )
    texts: list[str] = []
    for start, text in zip(starts, completed, strict=True):
        if several:
            sys.stdout.write(f"\n{SEPARATOR}\n" * bool(texts) + start + text)
        texts.append(start + text)
    bar.close()
    sys.stdout.write(f"{unprinted}\n")
    sys.stdout.flush()
    return texts


def training_text(trained: TrainedModel) -> SplitText:
    """The text that a network was trained on. Raises UserError if it is missing or has changed."""
    split_text = trained.source().read()
    if split_text.text.fingerprint != trained.data["fingerprint"]:
        raise UserError(
            f"--check_overlap: the corpus {trained.data['corpus']} has changed since the run was "
            "trained"
        )
    return split_text


def report_copies(trained: TrainedModel, texts: list[str], training: SplitText) -> None:
    """Print on standard error the passages of each text that also occur in the training text."""
    indexes = [
        WindowIndex(trained.tokenizer.encode(trained.tokenizer.drop_invalid(t)), COPY_LENGTH)
        for t in texts
    ]
    found = find_windows(indexes, training.ids("train"))
    copies = [passages(positions, COPY_LENGTH) for positions in found]
    for number, (index, of_text) in enumerate(zip(indexes, copies, strict=True), 1):
        for copy in of_text:
            copied = trained.tokenizer.decode(index.ids[copy.first : copy.last])
            print(
                f"text {number}, characters {copy.first:,} to {copy.last:,} occur in the training "
                f"text at {copy.elsewhere:,}: {copied!r}",
                file=sys.stderr,
            )
    if not any(copies):
        print(
            f"no passage of {COPY_LENGTH} characters occurs in the training text", file=sys.stderr
        )


def predict_with_trainer(
    parser: Parser,
    config: Any,
    trained: TrainedModel,
    prompts: list[str],
    options: GenerateOptions,
    seed: int,
) -> list[str]:
    """The same texts by `trainer.predict`, which supports more devices and precisions."""
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
    trainer = make_trainer(dict(instantiate(parser, config).trainer))
    if trainer.world_size > 1:
        raise UserError("predict uses one device; use --trainer.devices 1")
    loader: DataLoader[str] = DataLoader(
        cast("Dataset[str]", prompts),  # a list can be used as one
        batch_size=len(prompts),
        collate_fn=list,
    )
    predictions = trainer.predict(model, dataloaders=loader)
    if not predictions:
        raise UserError("--trainer.limit_predict_batches leaves nothing to generate; leave it out")
    return predictions[0]
