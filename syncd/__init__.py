"""syncd keeps Propstreet and a CRM saying the same thing, in both directions, for many tenants."""

__version__ = "0.1.0"
