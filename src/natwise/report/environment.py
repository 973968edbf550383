"""The Jinja environment of all pages: templates from this package, everything escaped."""

import functools

import jinja2


@functools.cache
def environment() -> jinja2.Environment:
    """Return the environment; an undefined name in a template is an error, and all values are escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("natwise.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
