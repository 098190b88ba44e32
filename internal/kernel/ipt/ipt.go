// Package ipt runs iptables-restore and iptables-save for one address family. Text goes in and parsed
// chains come out; what the rules are for is the caller's business.
package ipt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Times for one run of a tool. Loading tens of thousands of rules takes seconds; a run that lasts
// for minutes hangs.
const (
	lockWait = "20" // seconds to wait for the lock that legacy tools share
	timeout  = 3 * time.Minute
)

// tables are those that Save reads, optional those that it reads where they exist: in the kernel's older
// tables, reading one makes it, and needs its module.
var (
	tables   = []string{"nat", "filter"}
	optional = []string{"raw"}
)

// Tool is a working pair of restore and save programs.
type Tool struct {
	restore, save string
	variant       Variant
	ipv6          bool
	commits       uint32
}

// NFTables reports whether the tool keeps its rules in nftables, not in the kernel's older tables.
func (t *Tool) NFTables() bool { return t.variant == NFT }

// Find returns the tools of one variant for one address family. The error says for every name that they
// could have why not.
func Find(ipv6 bool, v Variant) (*Tool, error) {
	base := "iptables"
	if ipv6 {
		base = "ip6tables"
	}
	var reasons []string
	for _, suffix := range []string{"-" + string(v), ""} {
		t, err := lookup(base + suffix)
		if err == nil && t.variant != v {
			err = fmt.Errorf("%s is of variant %s", t.restore, t.variant)
		}
		if err == nil {
			t.ipv6 = ipv6
			return t, nil
		}
		reasons = append(reasons, err.Error())
	}
	return nil, fmt.Errorf("no %s-restore of variant %s: install the package iptables, 1.8 or newer (%s)", base, v, strings.Join(reasons, "; "))
}

func lookup(name string) (*Tool, error) {
	restore, err := exec.LookPath(name + "-restore")
	if err != nil {
		return nil, fmt.Errorf("%s-restore: %w", name, errors.Unwrap(err))
	}
	save, err := exec.LookPath(name + "-save")
	if err != nil {
		return nil, fmt.Errorf("%s-save: %w", name, errors.Unwrap(err))
	}
	version, _, err := run(nil, restore, "--version") // "iptables-restore v1.8.11 (nf_tables)", before 1.8 without parentheses
	if err != nil {
		return nil, fmt.Errorf("%s --version: %w", restore, err)
	}
	t := &Tool{restore: restore, save: save, variant: Legacy}
	if bytes.Contains(version, []byte("(nf_tables)")) {
		t.variant = NFT
	}
	return t, nil
}

// String returns the path of the restore program.
func (t *Tool) String() string { return t.restore }

// Enabled reports whether the running kernel has the family at all.
func Enabled(ipv6 bool) bool {
	if !ipv6 {
		return true
	}
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}

// Check reports why the tool cannot write rules here: no support in the kernel, no right, no lock. It does
// not read what is there, which may take seconds.
func (t *Tool) Check() error { return t.Test("*nat\nCOMMIT\n*filter\nCOMMIT\n") }

// Save reads the tables nat and filter, and raw and more where there are such: table -> chain -> rules without "-A CHAIN ".
func (t *Tool) Save(more ...string) (map[string]map[string][]string, error) {
	out := map[string]map[string][]string{}
	for _, table := range slices.Concat(tables, optional, more) {
		if !t.NFTables() && !slices.Contains(tables, table) && !exists(t.ipv6, table) {
			continue
		}
		parsed, err := t.SaveTable(table)
		if err != nil {
			return nil, err
		}
		for name, chains := range parsed {
			out[name] = chains
		}
	}
	return out, nil
}

// SaveTable is Save of one table.
func (t *Tool) SaveTable(table string) (map[string]map[string][]string, error) {
	saved, _, err := t.SavePolicies(table)
	return saved, err
}

// SavePolicies is SaveTable, with the policies of the kernel's own chains: chain -> "ACCEPT" or "DROP".
func (t *Tool) SavePolicies(table string) (saved map[string]map[string][]string, policies map[string]string, err error) {
	text, err := t.saved("-t", table)
	if err != nil {
		return nil, nil, err
	}
	if saved, err = parseSaved(text); err != nil {
		return nil, nil, fmt.Errorf("read table %s with %s: %w", table, t.save, err)
	}
	return saved, parsePolicies(text), nil
}

// saved is what the tool prints. Without the right to read it is an os.ErrPermission.
func (t *Tool) saved(args ...string) ([]byte, error) {
	text, stderr, err := run(nil, t.save, args...)
	if err == nil {
		return text, nil
	}
	if strings.Contains(stderr, "ermission denied") || strings.Contains(stderr, "not permitted") {
		err = errNoAccess
	}
	return nil, fmt.Errorf("read rules with %s: %w: %s", strings.Join(append([]string{t.save}, args...), " "), err, strings.TrimSpace(stderr))
}

// Counts reads how many packets the last rule of each chain of a table has met.
func (t *Tool) Counts(table string) (map[string]uint64, error) {
	text, stderr, err := run(nil, t.save, "-c", "-t", table)
	if err != nil {
		return nil, fmt.Errorf("read the counters of table %s with %s: %w: %s", table, t.save, err, strings.TrimSpace(stderr))
	}
	return parseCounts(text), nil
}

// Restore loads input without touching chains that it does not name. Each table in it is taken as a
// whole or not at all. A refusal is a *RestoreError.
func (t *Tool) Restore(input string) error {
	err := t.load(input, "--noflush", "-w", lockWait)
	if err == nil {
		t.commits += commitsOf(input)
	}
	return err
}

// Commits counts the tables that Restore has changed. With the variant nft each is a transaction, which raises
// the generation of the kernel's rules by one. Of an input that was refused none counts, although some of its tables may
// have been taken.
func (t *Tool) Commits() uint32 { return t.commits }

// commitsOf counts the tables in an input of which it says something.
func commitsOf(input string) (n uint32) {
	last := ""
	for line := range strings.Lines(input) {
		if line = strings.TrimSuffix(line, "\n"); line == "COMMIT" && !strings.HasPrefix(last, "*") {
			n++
		}
		last = line
	}
	return n
}

// Test checks that the tool can parse input, without changing the kernel.
func (t *Tool) Test(input string) error { return t.load(input, "--noflush", "--test", "-w", lockWait) }

func (t *Tool) load(input string, args ...string) error {
	_, stderr, err := run([]byte(input), t.restore, args...)
	if err == nil {
		return nil
	}
	return newRestoreError(t.restore, input, stderr, err)
}

func run(stdin []byte, name string, args ...string) (stdout []byte, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	err = cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("did not end within %s", timeout)
	}
	return out.Bytes(), errs.String(), err
}

// RestoreError says which line of the input the tool refused.
type RestoreError struct {
	Program string
	Line    int    // 1-based, 0 when the tool named none
	Text    string // that line; when it is a COMMIT, the tool found the fault only then
	Reason  string // what the tool said, in one line
	Err     error
}

// Error implements error.
func (e *RestoreError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s refused the rules: %s (%v)", e.Program, e.Reason, e.Err)
	}
	return fmt.Sprintf("%s refused line %d of its input, %q: %s", e.Program, e.Line, e.Text, e.Reason)
}

// Unwrap returns how the process ended.
func (e *RestoreError) Unwrap() error { return e.Err }

// lineNumber finds the line in what the tools say: "line 13: RULE_INSERT failed", "Error occurred at
// line: 3", "iptables-restore: line 2 failed: No chain/target/match by that name."
var lineNumber = regexp.MustCompile(`\bline:? (\d+)`)

func newRestoreError(program, input, stderr string, err error) *RestoreError {
	e := &RestoreError{Program: program, Err: err}
	var reason []string
	for _, l := range strings.Split(stderr, "\n") {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "Try `") && !strings.HasPrefix(l, "# Warning") {
			reason = append(reason, l)
		}
	}
	e.Reason = strings.Join(reason, " ")
	if m := lineNumber.FindStringSubmatch(stderr); m != nil {
		lines := strings.Split(input, "\n")
		if n, convErr := strconv.Atoi(m[1]); convErr == nil && n >= 1 && n <= len(lines) {
			e.Line, e.Text = n, lines[n-1]
		}
	}
	return e
}
