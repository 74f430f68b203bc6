"""python -m gpt2wds: the version, and the commands there are."""

import sys

from .version import __version__

TEXT = f"""gpt2wds {__version__}
gpt2wds-shard   a corpus → a dataset of shards; what is in one, verify, cat, export, push
gpt2wds-train   a dataset → a trained GPT-2, as a TOML file says
gpt2wds-eval    HellaSwag, losses, samples, what was read when, reports
Each says more with --help. Where they are not on the PATH: python -m gpt2wds.commands.shard, .train, .eval
"""

if __name__ == "__main__":
    is_asked = sys.argv[1:] in ([], ["-h"], ["--help"], ["--version"])
    print(TEXT, end="", file=sys.stdout if is_asked else sys.stderr)
    sys.exit(0 if is_asked else 2)  # whoever gives more takes it for a command
