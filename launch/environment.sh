# Sourced by the other scripts: a virtual environment in .venv with the package in it, made once.
# versions.txt: what was tested together, with Python 3.11; .ci/newest tries the newest instead.
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, this is $(python3 --version)"; exit 1; }
stamp=.venv/installed
if [ ! -f $stamp ] || [ pyproject.toml -nt $stamp ] || [ launch/versions.txt -nt $stamp ]; then
  python3 -m venv .venv
  install=".venv/bin/python -m pip install --quiet"
  $install --upgrade pip
  $install --constraint launch/versions.txt --editable '.[test]' || {
    echo "not with the versions of launch/versions.txt: the newest that fit are installed instead"
    $install --editable '.[test]'
  }
  touch $stamp
fi
source .venv/bin/activate
