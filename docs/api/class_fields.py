"""An extension of griffe, for the API pages: fields of classes stand in their signatures."""

import griffe

FIELDS = {"NamedTuple", "nn.Module"}  # bases whose subclasses take their fields as arguments


class ClassFields(griffe.Extension):
    """Shows named tuples, flax modules and flax dataclasses as griffe shows dataclasses."""

    def on_class_instance(self, *, cls: griffe.Class, **_: object) -> None:
        """Adds the decorator of a dataclass, by which griffe knows one."""
        bases = {str(base) for base in cls.bases}
        flax_dataclass = any(str(each.value) == "flax.struct.dataclass" for each in cls.decorators)
        if bases & FIELDS or flax_dataclass:
            dataclass = griffe.ExprName("dataclasses.dataclass")
            lines = {"lineno": cls.lineno, "endlineno": cls.lineno}
            cls.decorators.append(griffe.Decorator(dataclass, **lines))
