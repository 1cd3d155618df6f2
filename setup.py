from setuptools import find_packages, setup

# kernels/ stands beside vnet_fast/ in the repository and is vnet_fast.kernels when imported; every folder of
# vnet_fast/ with an __init__.py is a package
setup(
    packages=[*find_packages(include=["vnet_fast", "vnet_fast.*"]), "vnet_fast.kernels"],
    package_dir={"vnet_fast.kernels": "kernels"},
)
