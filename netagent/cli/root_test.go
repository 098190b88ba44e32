package cli

import (
	"fmt"
	"os/exec"
	"testing"
)

// TestCodes: the code of a command that was run for somebody is passed on; a tool that fails inside is told in words.
func TestCodes(t *testing.T) {
	child := exec.Command("false").Run()
	for _, tt := range []struct {
		err    error
		code   int
		silent bool
	}{{child, 1, true}, {exitCode(7), 7, true}, {fmt.Errorf("lab: %w", exitCode(7)), 7, true}, {fmt.Errorf("iptables: %w", child), 0, false}, {fmt.Errorf("no"), 0, false}} {
		if code, silent := codeOf(tt.err); code != tt.code || silent != tt.silent {
			t.Errorf("%v: %d, %v", tt.err, code, silent)
		}
	}
}
