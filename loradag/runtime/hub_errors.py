"""What the hub answers when it has not what was asked for, as messages for users."""

from collections.abc import Iterator
from contextlib import contextmanager

from loradag.config.problems import LoradagError


@contextmanager
def explain_hub_errors(section: str, id: str, revision: str | None, advice: str) -> Iterator[None]:
    """Around requests to the hub for `section.id` at `section.revision`.

    Args:
        section: of the configuration: `model`, `prepare`.
        id: the repository.
        revision: the branch, tag or commit that is asked for.
        advice: what to do without the network.

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
        raise LoradagError(f"{where}: {error}") from error
    except GatedRepoError as error:
        raise LoradagError(
            f"{where}: gated. Accept its conditions on its hub page and set HF_TOKEN to a token of "
            "that account."
        ) from error
    except RevisionNotFoundError as error:
        raise LoradagError(
            f"{section}.revision = {revision!r}: not a branch, tag or commit of {id}."
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
    except Exception as error:  # of the network: classes of the HTTP library, or of offline mode
        raise LoradagError(
            f"{where}: the hub cannot be reached ({type(error).__name__}). Check the network, or "
            f"take {advice}."
        ) from error
