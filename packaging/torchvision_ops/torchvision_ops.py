"""Lets CUDA builds of torchvision, torchaudio and torchcodec stand beside CPU torch.

PyPI's builds of the three packages for x86-64 Linux are CUDA builds. Beside CPU torch their compiled libraries cannot
load, and none of the three expects that:

- torchvision attaches Python code to two operators that nobody defined ("operator torchvision::nms does not exist"). The
  two schemas are defined here, without kernels.
- torchaudio lets the loader's OSError through, and transformers imports it wherever it is installed. It is told that it
  has no library.
- torchcodec lets the OSError through, and vLLM catches the ImportError of an absent package only. It is made one.

So importing works, and calling a compiled operator still fails. Owns the import hook that torchvision_ops.pth starts in
every process of the environment, so it must stay cheap: it imports nothing until one of the three packages is imported.
Must not know anything else of the project.
"""

import sys

OPERATOR_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _load_torchvision_extension(load, module):
    """Define OPERATOR_SCHEMAS unless torchvision's own library is loaded, which defines them itself."""
    load(module)
    if module._has_ops():
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in OPERATOR_SCHEMAS:
        library.define(schema)
    module.operator_schemas = library  # the definitions live as long as this object


def _load_torchaudio_utils(load, module):
    """Let torchaudio's loader answer False, its word for "no library here", also when a library cannot load."""
    load(module)
    load_library = module._load_lib

    def load_library_or_false(lib):
        try:
            return load_library(lib)
        except OSError:
            return False

    module._load_lib = load_library_or_false


def _load_torchcodec_operators(load, module):
    """Report a library that cannot load as what it amounts to for the importer: an absent package."""
    try:
        load(module)
    except OSError as error:
        raise ImportError(f"torchcodec cannot be used: {error}", name="torchcodec") from error


# Each module is the one that loads the package's library, before anything that needs it.
_REMEDIES = {
    "torchvision.extension": _load_torchvision_extension,
    "torchaudio._extension.utils": _load_torchaudio_utils,
    "torchcodec._core.ops": _load_torchcodec_operators,
}


class _Finder:
    """A sys.meta_path finder that reacts to the names in _REMEDIES alone."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        """Find the module as usual, to be loaded by its remedy; None for any other name."""
        remedy = _REMEDIES.get(fullname)
        if remedy is None:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: remedy(load, module)
        return spec


def install():
    """Put the finder in front of sys.meta_path, once per process."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
