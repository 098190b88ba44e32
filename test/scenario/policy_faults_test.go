package scenario

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// varies is what differs between two listings of the same rules: counters, and members that packets add.
var varies = regexp.MustCompile(`counter packets \d+ bytes \d+|expires \S+|^# Generated.*|^# Completed.*`)

// cmdRules writes what the kernel of every node holds into a file, with the numbers that the kernel gave its rules:
// a rule that is made anew has another.
func cmdRules(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: rules FILE")
	}
	var all strings.Builder
	for _, n := range labStatus(ts).Nodes {
		for _, argv := range [][]string{{"nft", "-a", "list", "ruleset"}, {"ipset", "list", "-sorted"}} {
			out, err := exec.Command(lookPath(ts, "netagent"), append([]string{"lab", "exec", "--name", ts.Getenv("LAB"), "node/" + n.Name, "--"}, argv...)...).Output()
			if err != nil && argv[0] == "nft" {
				ts.Fatalf("list the rules of %s: %v", n.Name, err)
			}
			all.WriteString(n.Name + "\n" + varies.ReplaceAllString(string(out), "") + "\n")
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(all.String()), 0o600))
}

// cmdCuts runs a verb of the playground that forbids lines of the load, and says how long it takes until the last of
// them has failed: `cuts REGEXP VERB…`. No other connection may be harmed.
func cmdCuts(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: cuts REGEXP VERB [ARG…]")
	}
	l, verb := loadOf(ts), args[1:]
	forbidden, err := regexp.Compile(args[0])
	ts.Check(err)
	all, err := l.settled()
	ts.Check(err)
	doomed := map[string]bool{}
	for name := range all {
		if forbidden.MatchString(name) && !strings.HasSuffix(name, ", datagrams") {
			doomed[name] = true
		}
	}
	if len(doomed) == 0 {
		ts.Fatalf("no line of the load is like %q", args[0])
	}
	cmdLab(ts, false, verb)
	said := time.Now()
	n, ended := len(doomed), said
	for len(doomed) > 0 {
		if time.Since(said) > deadline {
			ts.Fatalf("%s after %q these live on: %v", deadline, strings.Join(verb, " "), doomed)
		}
		time.Sleep(50 * time.Millisecond)
		counts, err := l.take()
		ts.Check(err)
		for name, t := range counts {
			switch {
			case t.Failed == 0:
			case !forbidden.MatchString(name):
				ts.Fatalf("harmed too:\n%s", failures(map[string]tally{name: t}))
			case doomed[name]:
				delete(doomed, name)
				if t.FirstFailed.After(ended) {
					ended = t.FirstFailed
				}
			}
		}
	}
	ts.Logf("the last of %d connections failed %s after %q", n, ended.Sub(said).Round(time.Millisecond), strings.Join(verb, " "))
}

// cmdResumes runs a verb of the playground after which lines of the load have to find another way, and says for how long
// they got no answer: `resumes REGEXP VERB…`. No other connection may be harmed.
func cmdResumes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: resumes REGEXP VERB [ARG…]")
	}
	l, verb := loadOf(ts), strings.Join(args[1:], " ")
	lines, err := regexp.Compile(args[0])
	ts.Check(err)
	_, err = l.take()
	ts.Check(err)
	cmdLab(ts, false, args[1:])
	said := time.Now()
	all, err := l.settled()
	ts.Check(err)
	failed, of, last := 0, 0, said
	for name, t := range all {
		switch {
		case lines.MatchString(name):
			failed, of = failed+t.Failed, of+t.Failed+t.OK
			if t.LastFailed.After(last) {
				last = t.LastFailed
			}
		case t.Failed > 0:
			ts.Fatalf("%q harmed others too:\n%s", verb, failures(map[string]tally{name: t}))
		}
	}
	if of == 0 {
		ts.Fatalf("no line of the load is like %q", args[0])
	}
	ts.Logf("after %q %d of %d exchanges got no answer, the last was begun %s later", verb, failed, of, last.Sub(said).Round(time.Millisecond))
}

// cmdLeaks does harm to a node's rules, waits until nobody gets through who must not, and says how many did and until
// when: `leaks NODE COMMAND…`. It may take no connections from those that are allowed, unless it is called as
// `leaks -any NODE COMMAND…`.
func cmdLeaks(ts *testscript.TestScript, neg bool, args []string) {
	any := len(args) > 0 && args[0] == "-any"
	if any {
		args = args[1:]
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: leaks [-any] NODE COMMAND…")
	}
	l := loadOf(ts)
	_, err := l.settled()
	ts.Check(err)
	begin := time.Now()
	cmdLab(ts, false, append([]string{"exec", "node/" + args[0], "--"}, args[1:]...))
	during, err := l.settled()
	ts.Check(err)
	leaked, last, of := 0, begin, 0
	for name, t := range during {
		switch never := strings.Contains(name, " never"); {
		case never:
			leaked, of = leaked+t.Failed, of+t.Failed+t.OK
			if t.LastFailed.After(last) {
				last = t.LastFailed
			}
		case t.Failed > 0 && !any:
			ts.Fatalf("%q harmed what is allowed:\n%s", strings.Join(args[1:], " "), failures(during))
		}
	}
	ts.Logf("after %q %d of %d denied connections got through, the last after %s", strings.Join(args[1:], " "), leaked, of, last.Sub(begin).Round(time.Millisecond))
}
