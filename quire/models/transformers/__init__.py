"""Any decoder or encoder that the library transformers defines and no file of this folder: its modules, our attention
over pages, our products, our scheduler, our loader.

The library calls a function of ours in place of attention, for all texts of a step at once (`packed.py`). A first run
without weights tells what each call is like and what cannot be served so: scores that are added to, masks that neither
a window nor a chunk explains, attention that is not the library's interface. Such models read their texts one by one
with their own attention, over our pages (`per_sequence.py`). Only this folder imports transformers, and only it may run
code of a checkpoint (`trust_remote_code`).
"""

import gc
import logging

from quire.base.errors import CheckpointError, ConfigError
from quire.checkpoint.facts import ModelFacts
from quire.layers.build import Build

try:
    from quire.models.transformers.config import check_config, read_config
    from quire.models.transformers.forward_pass import UnfitError
    from quire.models.transformers.making import may_attend
    from quire.models.transformers.model import Adopted
    from quire.models.transformers.packed import Packed
    from quire.models.transformers.per_sequence import PerSequence
except ImportError as missing:
    raise CheckpointError(
        f"models without a file of quire's need the library transformers ({missing}): pip install 'quire[transformers]'"
    ) from None

logger = logging.getLogger(__name__)


def build(facts: ModelFacts, build: Build, trust_remote_code: bool = False) -> Adopted:
    """The model of a checkpoint, as transformers defines it. Raises CheckpointError where it cannot be served."""
    if build.deterministic:
        raise ConfigError(
            f"deterministic: {facts.name} is computed by transformers (model_impl), whose results depend on the batch; "
            "serve it without"
        )
    config = read_config(facts, trust_remote_code)
    check_config(facts, build, config)
    refused = None
    if may_attend(facts, config):
        choices, states = len(build.choices), len(build.states)
        try:
            return Adopted(facts, build, config, Packed(facts, config), trust_remote_code)
        except UnfitError as error:
            refused = str(error)
        del build.choices[choices:], build.states[states:]
        # Modules may hold one another, and with them the memory of all weights.
        gc.collect()
    try:
        made = Adopted(facts, build, config, PerSequence(facts, config), trust_remote_code)
    except UnfitError as error:
        before = "" if refused is None else f"{refused}; text by text: "
        raise CheckpointError(f"{facts.path}: {before}{error}") from None
    if refused is not None and build.mesh.rank == 0:
        logger.warning("%s: texts are read one by one, which is slower: %s", facts.name, refused)
    return made
