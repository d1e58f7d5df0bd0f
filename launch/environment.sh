# Sourced by the other scripts: a virtual environment in .venv with the package in it, made once.
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, this is $(python3 --version)"; exit 1; }
stamp=.venv/installed
if [ ! -f $stamp ] || [ pyproject.toml -nt $stamp ]; then
  python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --upgrade pip
  .venv/bin/python -m pip install --quiet --editable '.[test]'
  touch $stamp
fi
source .venv/bin/activate
