"""Deployment files: ``shunter.yaml`` and ``shunter.toml``, from bytes to specs, every fault with its place.

====================  ===========================================================================
``finding``           which file, and its text
``yaml_tree``         YAML to a tree of values that know their line and column
``toml_tree``         TOML to the same tree
``variables``         ``${NAME}`` in its texts
``model``             what may stand in a file (also the JSON schema for editors)
``checking``          the tree against the model, and all that a model cannot say
``specs``             a deployment of the model to the contract's spec
``wording``           the model's complaints as sentences
``difference``        what a deploy changes
``applying``          all of it to the server, or nothing
====================  ===========================================================================
"""
