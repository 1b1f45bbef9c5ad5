"""What tests of several rooms share; every test imports it as `from tests.helpers.NAME import ...`."""
