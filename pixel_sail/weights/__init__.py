"""Everything that goes in or out of a model: conversion, the run folder, start, merging, publishing."""
