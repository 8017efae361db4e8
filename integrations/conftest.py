"""The modules whose examples are not looked for without Ray."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("ray") else ["rm_plugins_ray/prompt_router.py"]
