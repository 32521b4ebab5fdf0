"""What is installed. Settings of tools stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "([^"]+)"', (here / "raftd/__init__.py").read_text())[1]

setup(
    name="raftd",
    version=version,
    description="A replicated job queue that speaks the beanstalkd protocol",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["raftd", "raftd.*"]), "twisted.plugins"],
    package_data={"raftd": ["py.typed"], "raftd.bench": ["layers.json"], "raftd.server.http": ["page/*"]},
    package_dir={"twisted.plugins": "twisted_plugins"},
    # Without strict mode an editable install would lose the plugin in silence.
    options={"editable_wheel": {"mode": "strict"}},
    install_requires=[
        "Twisted[tls]>=26.4",
        "msgspec>=0.19",
        "PyYAML>=6",
        "click>=8.1",
        "rich>=13.7",
        "prompt_toolkit>=3.0.47",
        "prometheus_client>=0.21",
        "cronsim>=2.6",
        "tzdata",
    ],
    entry_points={"console_scripts": ["raftd = raftd.cli.main:main"]},
    extras_require={
        "plot": ["matplotlib>=3.9"],
        "browser": ["playwright>=1.49", "axe-playwright-python>=0.1.4"],
        "api": ["schemathesis>=4.32"],
        "test": [
            "pytest>=8",
            "greenstalk>=2.1",
            "pytest-twisted>=1.14",
            "pytest-xdist>=3.6",
            "pytest-cov>=6",
            "hypothesis>=6.100",
            "mypy>=1.11",
            "ruff>=0.6",
        ],
    },
)
