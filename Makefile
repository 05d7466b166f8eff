# make demo      the main job, on the captures that are part of the project
# make live      what live capture needs on this node (root): BCC, kernel headers; then `rke2-flows doctor`
# make test      every check: style, types, tests (as root also eBPF and the lab's cluster)
# make captures  record the captures again in the lab (root)
# make docs      the documents as a site
# make lint      style and types alone
# make lab       the lab's cluster with its offences, a live capture on each node, and the joint report (root)
# make bench     speed and memory beside other flow meters into docs/benchmarks.md; half an hour and 25 GB of temporary
#                files; NFSTREAM=PYTHON names a Python that has NFStream, BENCH=--resume takes up a run that was ended

PYTHON := /usr/bin/python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := demo-output
LAB    := lab-output
C      := $(wildcard bpf/*.h bpf/*.c analyzer/*.c analyzer/*.h analyzer/capture/*.c analyzer/capture/*.h tests/*.c tests/bpf/*.c tests/fuzz/*.c tests/bench/*.c)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
# tests start hundreds of commands: they are compiled once
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo live test test-packages test-python together lint docs captures lab bench clean
.DELETE_ON_ERROR:

BUILT_OF := pyproject.toml constraints.txt deploy/packages.sh $(wildcard analyzer/*.c analyzer/*.h analyzer/capture/*.c analyzer/capture/*.h bpf/*.h)

# --system-site-packages: BCC comes from the distribution, not from a package index
.stamps/demo: $(BUILT_OF)
	deploy/packages.sh demo
	test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	$(BIN)/pip install --quiet --editable .
	mkdir -p $(@D) && touch $@

# what pip builds with comes first; then Debian's packages and Python's do not wait for each other
.stamps/test: $(BUILT_OF)
	deploy/packages.sh demo
	test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	@$(MAKE) --no-print-directory -j 2 test-packages test-python
	mkdir -p $(@D) && touch .stamps/demo $@

test-packages:
	deploy/packages.sh test

test-python:
	$(BIN)/pip install --quiet --editable '.[test,lint,docs]'

demo: .stamps/demo
	@for folder in captures/*/; do \
	    name=$$(basename $$folder); \
	    printf '\n== %s ==\n' "$$name"; \
	    mkdir -p $(DEMO)/$$name; \
	    $(BIN)/rke2-flows check $$folder --cluster $$folder/cluster.yaml --fail-on never \
	        --json $(DEMO)/$$name/result.json --html $(DEMO)/$$name/report.html \
	        --plots $(DEMO)/$$name -o $(DEMO)/$$name/flows.parquet || exit; \
	done
	@printf '\nFor each recording in captures/ there are now report.html, result.json, flows.parquet and the matrices\n'
	@printf '(roles, nodes, rules; PNG and SVG) in %s/NAME/.\n' $(DEMO)

live: .stamps/demo
	deploy/packages.sh live
	deploy/prepare-live.sh
	$(BIN)/rke2-flows doctor

# mypy and the tests together: one of them alone leaves cores without work
test: .stamps/test
	@if [ "$$(id -u)" = 0 ]; then deploy/prepare-live.sh; fi
	@$(MAKE) --no-print-directory -j 2 lint together
	$(BIN)/python -m pytest -m alone

together: .stamps/test
	$(BIN)/python -m pytest -m "not alone" --dist loadfile --no-loadscope-reorder -n $$(($$(nproc) + 1))

lint: .stamps/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	clang-format --dry-run -Werror $(C)

docs: .stamps/test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@printf '\nThe documents are in build/site/index.html.\n'

captures: .stamps/test
	PYTHONPATH=tests $(BIN)/python -m lab record captures

lab: .stamps/test
	deploy/prepare-live.sh
	PYTHONPATH=tests $(BIN)/python -m lab live $(LAB)
	@printf '\n== all nodes ==\n'
	$(BIN)/rke2-flows check $(LAB)/live --cluster $(LAB)/live/cluster.yaml --fail-on never \
	    --json $(LAB)/result.json --html $(LAB)/report.html --plots $(LAB) -o $(LAB)/flows.parquet
	@printf '\nThe parts of each node are in %s/live/NODE/, report.html, result.json, flows.parquet and the matrices in %s/.\n' $(LAB) $(LAB)

bench: .stamps/test
	PYTHONPATH=tests $(BIN)/python -m bench all $(if $(NFSTREAM),--nfstream $(NFSTREAM)) $(BENCH)

clean:
	rm -rf $(VENV) .stamps build *.egg-info $(DEMO) $(LAB) analyzer/*.so analyzer/capture/*.so
