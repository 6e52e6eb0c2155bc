"""Pure core: configuration, formats, states, events. Standard library, pydantic and yaml only."""
