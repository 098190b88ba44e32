package iptables

import (
	"strings"

	"github.com/braidnet/braid/internal/desired/xt"
)

// Cleanup returns the input that removes every chain of ours and every rule that leads to one from
// what iptables-save printed, "" when there is none.
func Cleanup(kernel Saved) string { return xt.Remove(kernel, ours) }

// ours reports whether a chain is one that this package makes.
func ours(_, chain string) bool { return strings.HasPrefix(chain, Prefix) }

// leadsToUs reports whether a rule jumps or goes to one of our chains.
func leadsToUs(rule string) bool { return strings.HasPrefix(xt.LeadsTo(rule), Prefix) }
