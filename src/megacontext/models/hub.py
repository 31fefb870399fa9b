"""Is a model on the hub, and may we have it? One question, asked once, before transformers asks many times.

transformers asks for each of a model's files and tries again for half a minute where there is no answer; what it raises then
does not tell a misspelt name from a network that is down.
"""

from __future__ import annotations

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from megacontext.errors import ModelNotFound

# Seconds that the hub has to answer one small question.
PATIENCE = 5.0


def reachable(name: str) -> bool:
    """Whether the hub can be asked for the files of a model; False where they have to be in the local cache. Raises
    ModelNotFound, which says what to do, for a model that is neither there nor here."""
    if constants.HF_HUB_OFFLINE:
        return False
    api = HfApi()
    try:
        if api.model_info(name, timeout=PATIENCE, expand=["gated"]).gated:
            api.auth_check(name)
    except HFValidationError as error:
        raise ModelNotFound(f"no model {name!r}: it is neither a folder that holds config.json nor a hub id") from error
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{name} is gated: ask for access on its page, {api.endpoint}/{name}, then `hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no model {name!r}, or it is private: check the spelling (ids look like owner/name), or log "
            "in (`hf auth login`, or set HF_TOKEN); for a folder, pass the path of one that holds config.json"
        ) from error
    except Exception as error:  # no network, no answer in time, an answer that makes no sense: whatever, it is not to be had
        if not cached(name):
            raise ModelNotFound(
                f"{name!r} is not in the local cache, and the hub cannot be asked for it ({type(error).__name__} at "
                f"{api.endpoint}): check the network, or pass a folder that holds config.json"
            ) from error
        return False
    return True


def cached(name: str) -> bool:
    """Whether a model is in the local cache, as far as its configuration tells."""
    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def not_here(name: str) -> str:
    """The message about a model that could not be loaded from the hub nor from the local cache."""
    hint = "; the hub is switched off here (HF_HUB_OFFLINE=1)" if constants.HF_HUB_OFFLINE else ""
    return (
        f"no model {name!r}: pass a folder that holds config.json, or a hub id that is reachable or already in the "
        f"local cache{hint}"
    )
