package iptables

import (
	"slices"
	"strings"
)

// Cleanup returns the input that removes every chain of ours and every rule that leads to one from
// what iptables-save printed, "" when there is none.
func Cleanup(kernel Saved) string { return Remove(kernel, ours) }

// ours reports whether a chain is one that this package makes.
func ours(_, chain string) bool { return strings.HasPrefix(chain, Prefix) }

// Remove returns the input that removes the chains that are meant, and every rule that leads to one.
func Remove(kernel Saved, meant func(table, chain string) bool) string {
	var b strings.Builder
	for _, t := range sortedNames(kernel) {
		var declare, unlink, remove []string
		for _, name := range sortedNames(kernel[t]) {
			if meant(t, name) {
				declare = append(declare, ":"+name+" - [0:0]")
				remove = append(remove, "-X "+name)
				continue
			}
			for _, rule := range kernel[t][name] {
				if to := leadsTo(rule); to != "" && meant(t, to) {
					unlink = append(unlink, "-D "+name+" "+rule)
				}
			}
		}
		if lines := slices.Concat(declare, unlink, remove); len(lines) > 0 {
			b.WriteString("*" + t + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n")
		}
	}
	return b.String()
}

func sortedNames[T any](chains map[string]T) []string {
	names := make([]string, 0, len(chains))
	for n := range chains {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
