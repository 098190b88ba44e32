package iptables

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// equalRules compares wanted rules with those that iptables-save printed.
func equalRules(want, have []string) bool { return slices.EqualFunc(want, have, equalRule) }

// equalRule compares two rules word by word: whether a comment without blanks is printed in quotes,
// and to how many digits a probability, differs between versions of iptables.
func equalRule(a, b string) bool {
	if a == b {
		return true
	}
	x, y := words(a), words(b)
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

// words splits a rule as iptables-restore does: at blanks, except inside double quotes, in which a
// backslash takes the next character as it is.
func words(s string) (out []string) {
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

// leadsToUs reports whether a rule jumps or goes to one of our chains.
func leadsToUs(rule string) bool { return strings.HasPrefix(leadsTo(rule), Prefix) }

// leadsTo returns where a rule jumps or goes to, "" when nowhere.
func leadsTo(rule string) string {
	w := words(rule)
	for i := 1; i < len(w); i++ {
		if w[i-1] == "-j" || w[i-1] == "-g" {
			return w[i]
		}
	}
	return ""
}
