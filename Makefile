# make book   builds the site into _build/html
# make test   runs every test
# Both make their own environment in .venv and may be run again at any time.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SITE := _build/html/index.html
# Threads that wait should sleep: on two cores, spinning ones are in the way.
export OMP_WAIT_POLICY := passive

.PHONY: book test serve lab bench lint lock clean help
.DELETE_ON_ERROR:

help:
	@echo "make book   build the site into _build/html"
	@echo "make test   run every test"
	@echo "make serve  build, then serve the site on this machine (PORT=8000)"
	@echo "make lab    open the notebooks in JupyterLab"
	@echo "make bench  time dsclib beside its peers"
	@echo "make lint   check the style of the code"
	@echo "make lock   renew constraints.txt"
	@echo "make clean  remove the environment and all that was built"

$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	|| { echo "This book needs Python 3.11 or newer: install it, or name one with 'make book PYTHON=python3.12'"; exit 1; }
	@$(PYTHON) -m venv .venv \
	|| { echo "Python cannot make a virtual environment: on Debian or Ubuntu install it with 'apt install python3-venv'"; exit 1; }
	@echo "Installing the packages into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt \
	|| { echo "The packages could not be installed: see the message above, check the network, then run the same command again"; exit 1; }
	@touch $@

book: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter-book build . -W --keep-going \
	|| { echo "The book did not build: the messages above say why; what had run is kept, so 'make book' goes on from there"; exit 1; }
	@echo "The book is built: open $(SITE)"

# The browser and the images are only looked for when the tests need them.
test: $(INSTALLED)
	@$(BIN)/python tests/system_packages.py
	@$(MAKE) --no-print-directory book
	@$(BIN)/python -m pytest tests/dsclib tests/notebooks tests/site
	@$(BIN)/python tests/notebooks/run_nbval.py

serve: book
	@echo "Serving the book at http://localhost:$${PORT:-8000} (stop with Ctrl-C)"
	@$(BIN)/python -m http.server --bind localhost --directory _build/html $${PORT:-8000}

lab: $(INSTALLED)
	@$(BIN)/jupyter lab chapters

bench: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt -c constraints.txt
	@$(BIN)/python benchmarks/lasso.py

lint: $(INSTALLED)
	@$(BIN)/ruff check dsclib tests benchmarks experiments _ext
	@$(BIN)/ruff format --check dsclib tests benchmarks experiments _ext

# A fresh environment from requirements.txt alone; its versions become the lock.
lock:
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet -r requirements.txt
	@{ echo "# The versions this book was built and tested with (Python 3.11); made by 'make lock'."; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep == | sed 's/+cpu//' | sort -f; } > constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf .venv _build
