"""Optional packages: one table of what needs what, and the sentence to say when it is missing.

Each package of the table is imported by exactly one module of shardfeed, inside the function that needs it, through
`load`; so ``import feeder`` needs none of them. An entry's extra is what brings it: ``pip install 'shardfeed[s3]'``.
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from feeder.errors import MissingPackageError


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionalPackage:
    """What is imported, which extra brings it, and what it is for (the subject of the sentence when it is missing)."""

    module: str
    extra: str
    purpose: str

    @property
    def install_command(self) -> str:
        return f"pip install 'shardfeed[{self.extra}]'"


PACKAGES = {
    "pillow": OptionalPackage(module="PIL.Image", extra="pillow", purpose="engine 'pillow'"),
    "torch": OptionalPackage(module="torch", extra="torch", purpose="a batch of torch tensors"),
    "dali": OptionalPackage(module="nvidia.dali", extra="dali", purpose="engine 'dali'"),
    "s3": OptionalPackage(module="s3fs", extra="s3", purpose="an s3:// URL"),
    "redis": OptionalPackage(module="redis", extra="redis", purpose="cache tier 'redis'"),
    "webdataset": OptionalPackage(module="webdataset", extra="webdataset", purpose="comparing with webdataset"),
    "ray": OptionalPackage(module="ray", extra="ray", purpose="running on a Ray cluster"),
    "prometheus": OptionalPackage(module="prometheus_client", extra="prometheus", purpose="the Prometheus endpoint"),
}


def load(name: str) -> ModuleType:
    """Import and return the module of the optional package ``name``, a key of `PACKAGES`.

    Raises:
        MissingPackageError: the package is not installed, or is installed and fails while it is imported; the sentence
            names its purpose and the command that installs it.
    """
    package = PACKAGES[name]
    try:
        return import_module(package.module)
    except ModuleNotFoundError as error:
        # Another name is missing when the package is there and one of its own dependencies is not.
        if error.name is not None and f"{package.module}.".startswith(f"{error.name}."):
            raise MissingPackageError(
                f"{package.purpose} needs a package that is not installed; run: {package.install_command}"
            ) from None
        raise _broken(package, error) from error
    except Exception as error:
        raise _broken(package, error) from error


def _broken(package: OptionalPackage, error: Exception) -> MissingPackageError:
    """Return the error for an installed package that cannot be imported: a missing library, the wrong build."""
    reason = str(error).strip().partition("\n")[0]
    command = package.install_command.replace("pip install", "pip install --force-reinstall")
    return MissingPackageError(
        f"{package.purpose} needs the package {package.module.partition('.')[0]!r}, which is installed but cannot be "
        f"imported ({type(error).__name__}: {reason}); run: {command}"
    )
