"""Parameter-efficient strategies: small modules and heads, trained task by task on a frozen vision transformer.

tuned.py is what they share; bank.py and the techniques beside it are the modules. Importing this registers them.
"""

from reprise.cl_models.peft import hide, l2c, selector, sequential, slca  # noqa: F401
