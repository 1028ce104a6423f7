"""Every file that a door writes: who may read it, what it may hold, who may get it. docs/files.md shows it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

BY_TRAINERS, BY_AUDIT, BY_COMPARE = "PLoRA, SPLoRA, DPLoRA", "audit", "compare"
BY_TOOLS = "networks/"
NEVER = "never"
CONFIG_HEADER = "# resolved options of "  # the first words of a run's config.toml
# What a word in a pattern stands for; a star stands for any part of a name, two stars for whole folders
WORDS = {
    "<name>": r"(?!proxy\.)[^/]+",  # the proxy attacker is no LoRA
    "<hash>": r"[0-9a-f]{24,64}",
    "<number>": r"\d+",
    "<any>": r"[^/]+",
}


@dataclass(frozen=True)
class Row:
    """One kind of file, or of folder where the pattern ends in a slash."""

    pattern: str  # path inside the place
    writer: str
    holds: str
    share: str
    private: bool = True  # 0600, a folder 0700; False leaves the mode to the umask

    def mode(self, is_folder: bool, umask: int) -> int:
        """The mode that a file or folder of this row has."""
        if self.private:
            return 0o700 if is_folder else 0o600
        return (0o777 if is_folder else 0o666) & ~umask

    def fits(self, path: str, is_folder: bool) -> bool:
        """Whether a path inside the place is of this kind."""
        if self.pattern.endswith("**"):
            return path.startswith(self.pattern.removesuffix("**"))
        pieces = re.split(r"(<\w+>|\*)", self.pattern.removesuffix("/"))
        pattern = "".join(WORDS.get(piece, "[^/]*" if piece == "*" else re.escape(piece)) for piece in pieces)
        return self.pattern.endswith("/") == is_folder and re.fullmatch(pattern, path) is not None


@dataclass(frozen=True)
class Place:
    """A folder that doors write into."""

    title: str
    text: str  # what the page says above the rows
    rows: Sequence[Row]  # its own
    inner: Sequence[Row] = ()  # those of other places inside it

    def rows_of(self, path: str, is_folder: bool) -> list[Row]:
        """Every row that a path fits; there must be one."""
        return [row for row in (*self.rows, *self.inner) if row.fits(path, is_folder)]


def inside(folder: str, rows: Sequence[Row], private: bool = False) -> list[Row]:
    """The rows of one place as they stand in another.

    Args:
        private: there everything is the owner's alone.
    """
    return [replace(row, pattern=f"{folder}/{row.pattern}", private=row.private or private) for row in rows]


EVENTS = "scalars and **previews**; the file's name holds the machine's name"
TRAINING = (
    Row("<name>.safetensors", f"{BY_TRAINERS}; audit --stamp",
        "the LoRA, at the end and per epoch or step; its metadata is an allow-list without captions, names and counts of pictures (`--metadata full` adds your own words and counts)",
        "yes, after an audit", private=False),
    Row("split.json", BY_TRAINERS, "who is a member: hash of the pixels, path, side and group of every picture; and the secret behind the draw", NEVER),
    Row("config.toml", BY_TRAINERS, "every option, resolved: names of folders, words put around captions; a hash of the split under its secret",
        "never as it is: take out folders and words"),
    Row("run.lock", BY_TRAINERS, "process and machine of the run that writes into the folder; removed at its end", NEVER),
    Row("log.jsonl", BY_TRAINERS, "losses and the attacker's figures by step; no caption, no file name",
        "never as it is: counts of the aux sides and steps per epoch narrow the number of members"),
    Row("training.png", BY_TRAINERS, "loss and attacker over the run, drawn from log.jsonl, without the steps, counts and epochs that stand there",
        "yes, where the loss may be known"),
    Row("proxy.safetensors", BY_TRAINERS, "the proxy attacker, fitted on the aux sides", NEVER),
    Row("sample/", BY_TRAINERS, "previews", NEVER),
    Row("sample/<name>.png", BY_TRAINERS, "previews and their sheet: they show what the pictures show",
        "picture by picture, if you would show the subject"),
    Row("state/", BY_TRAINERS, "states for --resume", NEVER),
    Row("state/<any>-state/", BY_TRAINERS, "one state", NEVER),
    Row("state/<any>-state/lora.safetensors", BY_TRAINERS, "the LoRA's parameters in fp32", NEVER),
    Row("state/<any>-state/proxy.safetensors", BY_TRAINERS, "the proxy attacker", NEVER),
    Row("state/<any>-state/average.safetensors", BY_TRAINERS, "the average of the weights, with ema_decay", NEVER),
    Row("state/<any>-state/kept.safetensors", BY_TRAINERS, "the weights that the final LoRA would have, with target_auc", NEVER),
    Row("state/<any>-state/first_falls.safetensors", BY_TRAINERS, "how far each aux picture's error had fallen in the first validation pass", NEVER),
    Row("state/<any>-state/optimizers.pt", BY_TRAINERS, "moments of both optimizers", NEVER),
    Row("state/<any>-state/state.json", BY_TRAINERS, "step, options (folders among them), hash of the split", NEVER),
    Row("state/<any>-teachers/", BY_TRAINERS, "teachers of a distillation, removed at the end of the run (`distill_keep_teachers` leaves them)", NEVER),
    Row("state/<any>-teachers/teacher-<number>.safetensors", BY_TRAINERS, "one teacher's parameters in fp32: it knows its members by heart", NEVER),
    Row("tensorboard/", BY_TRAINERS, "records of TensorBoard", NEVER),
    Row("tensorboard/events.out.tfevents.*", BY_TRAINERS, EVENTS, NEVER),
    Row("tensorboard/<any>/", BY_TRAINERS, "the same, with log_prefix", NEVER),
    Row("tensorboard/<any>/events.out.tfevents.*", BY_TRAINERS, EVENTS, NEVER),
    Row("wandb/", BY_TRAINERS, "what wandb keeps here, with log_with = \"wandb\"", NEVER),
    Row("wandb/**", BY_TRAINERS, "figures and wandb's own notes on the machine; modes are set when the run ends", NEVER),
)  # fmt: skip
RECORDS = (
    Row("sweep-<any>.json", BY_AUDIT, "hashes of all pictures, and where the model's answers about them lie", NEVER),
    Row("records/", BY_AUDIT, "the model's answers", NEVER),
    Row("records/<hash>*/", BY_AUDIT, "answers to one set of questions", NEVER),
    Row("records/<hash>*/<hash>.safetensors", BY_AUDIT, "statistics by hash of the picture; of drawings also thumbnails, of robustness "
        "also what was added to the picture", NEVER),
)  # fmt: skip
SHADOW = (
    Row("sides.json", BY_AUDIT, "the same pictures on a shadow's sides", NEVER),
    Row("recipe.toml", BY_AUDIT, "the options of the training under audit", NEVER),
    *RECORDS,
)
AUDIT = (
    Row("report.html", BY_AUDIT, "the report, with thumbnails, file names and groups of the most exposed pictures", NEVER),
    Row("findings.json", BY_AUDIT, "aggregate figures at full precision; no picture, caption, or name of a picture, group "
        "or folder", "no: publish the one of --publishable"),
    Row("scores.csv", BY_AUDIT, "every score of every picture, by the hash of its pixels, with its side and the number of its group", NEVER),
    Row("robustness.json", BY_AUDIT, "with `--attacks robustness`: aggregate figures at full precision; no picture, caption, or name", "no: quote rounded figures with n and interval"),
    Row("robustness.html", BY_AUDIT, "the same as a page, under the folder's name; no picture", "no"),
    Row("reconstruction.json", BY_AUDIT, "with `--attacks reconstruction`: aggregate figures at full precision; no picture, caption, or name", "no: quote rounded figures with n and interval"),
    Row("reconstruction.html", BY_AUDIT, "the same as a page, under the folder's name; no picture", "no"),
    Row("reconstruction/", BY_AUDIT, "what the attack on the weights learns from and paints", NEVER),
    Row("reconstruction/pictures.png", BY_AUDIT, "what the LoRA paints without its captions: pictures that may show private ones", NEVER),
    Row("reconstruction/shadows/", BY_AUDIT, "LoRAs of public persons", NEVER),
    Row("reconstruction/shadows/<hash>/", BY_AUDIT, "those of one base and recipe", NEVER),
    Row("reconstruction/shadows/<hash>/corpus.json", BY_AUDIT, "base and recipe", NEVER),
    Row("reconstruction/shadows/<hash>/<hash>.safetensors", BY_AUDIT, "some LoRAs of public persons, at four moments of their training", NEVER),
    *RECORDS,
    Row("shadows/", BY_AUDIT, "shadow LoRAs", NEVER),
    Row("shadows/<hash>/", BY_AUDIT, "one shadow: what a training writes (its LoRA is 0600), and the rows of a shadow",
        NEVER),
)  # fmt: skip
AUDIT_INSIDE = inside("shadows/<hash>", [*SHADOW, *TRAINING], private=True)
OUTPUT_INSIDE = [Row("audit/", BY_AUDIT, "the audit", NEVER), *inside("audit", [*AUDIT, *AUDIT_INSIDE])]
FRONTIER = (
    Row("frontier.md", BY_COMPARE, "held-out gain against leak: rounded figures with intervals, your own titles",
        "yes, once the titles name nobody"),
    Row("frontier.json", BY_COMPARE, "the same at full precision", "no: publish the table"),
    Row("frontier.svg", BY_COMPARE, "the same as a figure", "yes, once the titles name nobody"),
)  # fmt: skip
COMPARE = (
    Row("table.md", BY_COMPARE, "the table: rounded figures with intervals, sizes of the test sides, your own titles",
        "yes, once the titles name nobody"),
    Row("table.json", BY_COMPARE, "the same at full precision", "no: publish the table"),
    Row("<any>.txt", BY_COMPARE, "what a training said; warnings name pictures", NEVER),
    Row("<any>.trained.json", BY_COMPARE, "the options of a training that came to its end, folders among them", NEVER),
    Row("<any>/", BY_COMPARE, "the output folder of one training", "file by file, see there", private=False),
)  # fmt: skip
CACHE = (
    Row("latents/", f"{BY_TRAINERS}, audit", "latents of the pictures", NEVER),
    Row("latents/<hash>.safetensors", f"{BY_TRAINERS}, audit", "one picture, encoded: it decodes to the picture", NEVER),
    Row("datasets/", f"{BY_TRAINERS}, audit", "pictures and captions of dataset_name", NEVER),
    Row("datasets/.locks/", f"{BY_TRAINERS}, audit", "locks of the library `datasets`", NEVER),
    Row("datasets/.locks/**", f"{BY_TRAINERS}, audit", "locks; their names hold paths", NEVER),
    Row("datasets/<hash>/", f"{BY_TRAINERS}, audit", "one dataset", NEVER),
    Row("datasets/<hash>/<hash>.<any>", f"{BY_TRAINERS}, audit", "one picture, its own bytes", NEVER),
    Row("datasets/<hash>/captions-<any>-lines.jsonl", f"{BY_TRAINERS}, audit", "captions, paths and groups", NEVER),
    Row("audit/", BY_AUDIT, "what the base alone answers", NEVER),
    Row("audit/<hash>*/", BY_AUDIT, "answers to one set of questions", NEVER),
    Row("audit/<hash>*/<hash>.safetensors", BY_AUDIT, "statistics by hash of the picture", NEVER),
)  # fmt: skip
PUBLISHED = (
    Row("findings.json", BY_AUDIT, "figures to two digits with n and interval, SHA-256 of the LoRA file, the day, the "
        "suite's version", "yes"),
    Row("scores.csv", BY_AUDIT, "a line per tested picture: a number of chance, its side, the fifth of its score", "yes"),
    Row("report.html", BY_AUDIT, "the report without pictures, scores, groups and names", "yes"),
)  # fmt: skip
NUMBERED = (Row("<number>/", BY_AUDIT, "one LoRA of several, in the order of the call", "yes"),)
TOOLS = (
    Row("<name>.safetensors", BY_TOOLS, "a LoRA or a checkpoint; of the metadata of its sources only what may be shared, and no audit of them",
        "like the LoRA that it was made of; audit a changed LoRA anew", private=False),
    Row("<any>/", BY_TOOLS, "a merged checkpoint, where `sd_model` is a folder", "the same", private=False),
    Row("<any>/**", BY_TOOLS, "what the folder of `sd_model` holds, with changed weights", "the same", private=False),
)  # fmt: skip

OUTPUT_DIR = Place("`output_dir`", "What a training writes. `audit/` lies in it, see below.", TRAINING, OUTPUT_INSIDE)
AUDIT_DIR = Place(
    "`output_dir/audit/`, or `<file>-audit/` beside a LoRA file that was audited alone",
    "The folder is 0700. A shadow's folder also holds the rows of `output_dir`, all of them 0600.",
    AUDIT, AUDIT_INSIDE,
)  # fmt: skip
SHADOW_DIR = Place("A shadow's folder, `audit/shadows/<hash>/`", "Beside what a training writes.", SHADOW)
PUBLISHABLE = Place(
    "`--publishable OUT`",
    "The folder is 0700 and its files 0600, so that its owner looks at them before others do. Several LoRAs of one call "
    "get a folder each, `OUT/1`, `OUT/2`, in the order of the call, `--undefended` last.",
    (*PUBLISHED, *NUMBERED), inside("<number>", PUBLISHED),
)  # fmt: skip
CACHE_DIR = Place("`cache_dir` (`output/.cache`)", "The folder is 0700.", CACHE)
COMPARE_DIR = Place(
    "The folder of `compare.sh`",
    "Each training has its output folder in it.",
    (*COMPARE, *FRONTIER), inside("<any>", [*TRAINING, *OUTPUT_INSIDE]),
)  # fmt: skip
COMPARE_SPLITS = Place(
    "The folder of `compare.sh` with `repeats` above 1",
    "Each split has a folder with what stands above, but for the frontier.",
    (*FRONTIER, Row("split-<number>/", BY_COMPARE, "the comparison on one split", "file by file, see above", private=False)),
    inside("split-<number>", [*COMPARE, *inside("<any>", [*TRAINING, *OUTPUT_INSIDE])]),
)  # fmt: skip
LOGGING_DIR = Place(
    "`logging_dir`",
    "In place of `output_dir/tensorboard/`. A folder that was there before keeps its mode.",
    (
        Row("events.out.tfevents.*", BY_TRAINERS, EVENTS, NEVER),
        Row("<any>/", BY_TRAINERS, "the same, with log_prefix", NEVER),
        Row("<any>/events.out.tfevents.*", BY_TRAINERS, EVENTS, NEVER),
    ),
)
TOKENIZERS = Place(
    "`tokenizer_cache_dir`",
    "Tokenizers that were fetched from the hub: public files, and nothing of yours.",
    (
        Row("<any>/", BY_TRAINERS, "the tokenizer of one repository", "as its licence says", private=False),
        Row("<any>/<any>", BY_TRAINERS, "its files", "as its licence says", private=False),
    ),
)
LORA_TOOLS = Place(
    "`save_to` and `--strip` of the tools on LoRA files",
    "[The tools](lora_tools.md) read files that were shared, or are to be, and leave them as they are.",
    TOOLS,
)
PLACES = (
    OUTPUT_DIR,
    AUDIT_DIR,
    SHADOW_DIR,
    PUBLISHABLE,
    CACHE_DIR,
    COMPARE_DIR,
    COMPARE_SPLITS,
    LOGGING_DIR,
    TOKENIZERS,
    LORA_TOOLS,
)
