"""Errors of the Hugging Face hub as messages that name the key and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from loradag.config.problems import LoradagError


@contextmanager
def explain_hub_errors(section: str, id: str, revision: str | None, advice: str) -> Iterator[None]:
    """A context that turns errors of requests for `section.id` into a `LoradagError`.

    Args:
        section: the config section that names the repository: `model` or `prepare`.
        id: the repository.
        revision: the branch, tag or commit that is requested.
        advice: what to choose instead without a network.

    Raises:
        LoradagError: the repository is missing, private or gated, or the hub is out of reach.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{section}.id = {id!r}"
    try:
        yield
    except LoradagError:
        raise
    except HFValidationError as error:
        raise LoradagError(f"{where}: {error} Use a name such as org/name.") from error
    except GatedRepoError as error:
        raise LoradagError(
            f"{where}: it is gated. Accept its conditions on its hub page and set HF_TOKEN to a "
            "token of that account."
        ) from error
    except RevisionNotFoundError as error:
        raise LoradagError(
            f"{section}.revision = {revision!r}: not a branch, tag or commit of {id}. "
            "Check the spelling."
        ) from error
    except RepositoryNotFoundError as error:
        raise LoradagError(
            f"{where}: not on the hub, or private. Check the spelling; if it is private, set "
            "HF_TOKEN."
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        cause = "HF_TOKEN is not accepted" if status == 401 else f"the hub answered {status}"
        raise LoradagError(f"{where}: {cause}. Check HF_TOKEN, or try again later.") from error
    except Exception as error:  # network errors are the HTTP library's own classes
        raise LoradagError(
            f"{where}: the hub cannot be reached ({type(error).__name__}). Check the network, or "
            f"take {advice}."
        ) from error
