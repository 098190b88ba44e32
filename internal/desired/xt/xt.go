// Package xt has the language of iptables: how rules are written so that iptables-save prints them the same way, how
// they are compared with what it printed, and how chains are taken away. It knows no kernel and runs no tool.
package xt

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// Saved is what iptables-save printed: table -> chain -> rules without "-A CHAIN ". Chains without
// rules are in it too.
type Saved map[string]map[string][]string

// PolicyPrefix starts the names of the chains that enforce policy. The rules that lead to them are the first of the
// kernel's chains: what an earlier one accepted they could not refuse.
const PolicyPrefix = "BRAIDPOL-"

// PolicySet begins the name of the ipset that rules of policy refer to wherever they are in force: that of the pods which
// nothing isolates.
func PolicySet(ipv6 bool) string {
	if ipv6 {
		return "braid6-from-open-"
	}
	return "braid4-from-open-"
}

// Rule joins the words of a rule, in the order in which iptables-save prints them, so that what is
// read back usually equals what was written.
func Rule(words ...string) string {
	out := make([]string, 0, len(words))
	for _, w := range words {
		if w != "" {
			out = append(out, w)
		}
	}
	return strings.Join(out, " ")
}

// PolicyPods begins the names of the ipsets with the addresses of pods whose policies are in force, by direction. A pod in
// none of them is refused everything.
func PolicyPods(ipv6 bool) []string {
	if ipv6 {
		return []string{"braid6-from-", "braid6-to-"}
	}
	return []string{"braid4-from-", "braid4-to-"}
}

// commentMax leaves room below the 255 characters that the kernel keeps.
const commentMax = 200

// Comment renders a comment match. Names come from objects that need not have passed an API server,
// so everything that could end the quotes or the line is replaced.
func Comment(text string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune(" -._:/,()", r):
			return r
		}
		return '_'
	}, text)
	if len(clean) > commentMax {
		clean = clean[:commentMax]
	}
	return `-m comment --comment "` + clean + `"`
}

// EqualRules compares wanted rules with those that iptables-save printed.
func EqualRules(want, have []string) bool { return slices.EqualFunc(want, have, EqualRule) }

// EqualRule compares two rules word by word: whether a comment without blanks is printed in quotes,
// and to how many digits a probability, differs between versions of iptables.
func EqualRule(a, b string) bool {
	if a == b {
		return true
	}
	x, y := Words(a), Words(b)
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if x[i] == y[i] {
			continue
		}
		if i == 0 || x[i-1] != "--probability" || !equalProbability(x[i], y[i]) {
			return false
		}
	}
	return true
}

// equalProbability compares to one part in a million: coarser than any version prints, finer than
// the difference between 1/n and 1/(n+1) up to a thousand backends, where one is as good as the other.
func equalProbability(a, b string) bool {
	x, err1 := strconv.ParseFloat(a, 64)
	y, err2 := strconv.ParseFloat(b, 64)
	return err1 == nil && err2 == nil && math.Abs(x-y) < 1e-6
}

// Words splits a rule as iptables-restore does: at blanks, except inside double quotes, in which a
// backslash takes the next character as it is.
func Words(s string) (out []string) {
	var w strings.Builder
	in, quoted := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\' && i+1 < len(s):
			i++
			w.WriteByte(s[i])
		case c == '"':
			quoted, in = !quoted, true
		case !quoted && (c == ' ' || c == '\t'):
			if in {
				out = append(out, w.String())
				w.Reset()
				in = false
			}
		default:
			in = true
			w.WriteByte(c)
		}
	}
	if in {
		out = append(out, w.String())
	}
	return out
}

// LeadsTo returns where a rule jumps or goes to, "" when nowhere.
func LeadsTo(rule string) string {
	w := Words(rule)
	for i := 1; i < len(w); i++ {
		if w[i-1] == "-j" || w[i-1] == "-g" {
			return w[i]
		}
	}
	return ""
}

// Remove returns the input that removes the chains that are meant, and every rule that leads to one.
func Remove(kernel Saved, meant func(table, chain string) bool) string {
	var b strings.Builder
	for _, t := range SortedNames(kernel) {
		var declare, unlink, remove []string
		for _, name := range SortedNames(kernel[t]) {
			if meant(t, name) {
				declare = append(declare, ":"+name+" - [0:0]")
				remove = append(remove, "-X "+name)
				continue
			}
			for _, rule := range kernel[t][name] {
				if to := LeadsTo(rule); to != "" && meant(t, to) {
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

// SortedNames returns the keys in order.
func SortedNames[T any](chains map[string]T) []string {
	names := make([]string, 0, len(chains))
	for n := range chains {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
