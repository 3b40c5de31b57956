//go:build unix && !linux

package spool

import "errors"

func childNoSpace(string) error { return errors.New("this test is for Linux") }
