# Each target does its own set-up.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: quickstart test test-all lint

quickstart:  ## unlabelled images to guided samples and a report
	@./setup.sh
	sgdm prepare quickstart
	sgdm annotate quickstart
	deepspeed engine/train.py quickstart
	sgdm sample quickstart
	sgdm evaluate quickstart

test:  ## all but the slow tests
	@./setup.sh dev
	pytest -m "not slow"

test-all:  ## every test that this machine can run
	@./setup.sh dev
	pytest

lint:
	@./setup.sh dev
	ruff check .
	ruff format --check .
	mypy
