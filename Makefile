# Each target does its own set-up.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: quickstart test test-slow test-all lint

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

test-slow:  ## the slow ones
	@./setup.sh dev
	pytest -m slow

test-all: test test-slow  ## every test that this machine can run

lint:
	@./setup.sh dev
	ruff check .
	ruff format --check .
	mypy
