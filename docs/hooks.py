"""Pages of the documentation that are made from the code, so that they are never out of date."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from conf.reference import reference


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the configuration reference.

    Args:
        files: of the site.
        config: of the site.

    Returns:
        The same with the generated pages.
    """
    files.append(File.generated(config, "configuration.md", content=reference()))
    return files
