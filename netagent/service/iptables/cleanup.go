package iptables

import (
	"slices"
	"strings"
)

// Cleanup returns the input that removes every chain of ours and every rule that leads to one from
// what iptables-save printed, "" when there is none.
func Cleanup(kernel Saved) string {
	var b strings.Builder
	for _, t := range tables {
		var declare, unlink, remove []string
		for _, name := range sortedNames(kernel[t]) {
			if strings.HasPrefix(name, Prefix) {
				declare = append(declare, ":"+name+" - [0:0]")
				remove = append(remove, "-X "+name)
				continue
			}
			for _, rule := range kernel[t][name] {
				if leadsToUs(rule) {
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

func sortedNames(chains map[string][]string) []string {
	names := make([]string, 0, len(chains))
	for n := range chains {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
