package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// snapshot is what Braid holds in a node's kernel, as lines: rules, routes, forwarding and neighbour
// entries of the overlay.
type snapshot []string

const snapshotScript = `
nft list tables | grep -E '^table [a-z0-9]+ braid(-[a-z]+)?$' | while read -r _ family name; do nft list table "$family" "$name"; done
sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding
ip -o route show table all
ip -o -6 route show table all
for d in /sys/class/net/braid.*; do [ -e "$d" ] || continue; d=${d##*/}
	ip -o addr show dev "$d"
	ip -o neigh show dev "$d" nud permanent
	bridge fdb show dev "$d"
done`

// volatile matches lines that the kernel makes by itself, differently for a device that was made anew.
var volatile = regexp.MustCompile(`dev brd|fe80::|multicast|^(33:33|01:00:5e):`)

// ofPod matches lines about the interface of one pod.
var ofPod = regexp.MustCompile(`\bbrd[0-9a-f]{11}\b`)

// slotNumber is that of a backend among those of its frontend, which means nothing.
var slotNumber = regexp.MustCompile(` \. 0x[0-9a-f]{8} comment`)

// counted is what a rule has counted.
var counted = regexp.MustCompile(`counter packets \d+ bytes \d+`)

var deviceNumber = regexp.MustCompile(`^[0-9]+: `)

// kernel reads a node's kernel.
func (o *options) kernel(r *rig, node string) (snapshot, error) {
	text, err := o.output(r.ctx, node, true, "sh", "-c", snapshotScript)
	if err != nil {
		return nil, err
	}
	return parseSnapshot(text), nil
}

func parseSnapshot(text string) (out snapshot) {
	for line := range strings.Lines(text) {
		line = deviceNumber.ReplaceAllString(strings.TrimSpace(line), "")
		// The elements of a set have no order that means anything.
		for part := range strings.SplitSeq(strings.TrimPrefix(line, "elements = "), ", ") {
			part = counted.ReplaceAllString(slotNumber.ReplaceAllString(part, " comment"), "counter")
			if part = strings.Trim(part, "{}, \t"); part != "" && !volatile.MatchString(part) {
				out = append(out, part)
			}
		}
	}
	slices.Sort(out)
	return out
}

// withoutPods leaves out what comes and goes with single pods, such as those of faultAPIServer.
func (s snapshot) withoutPods() snapshot {
	return slices.DeleteFunc(slices.Clone(s), func(l string) bool {
		return ofPod.MatchString(l) || strings.Contains(l, `"`+faultsNamespace+"/"+victim+`"`)
	})
}

// missing lists the lines of s that other lacks, each as often as it lacks it.
func (s snapshot) missing(other snapshot) (out []string) {
	have := map[string]int{}
	for _, l := range other {
		have[l]++
	}
	for _, l := range s {
		if have[l]--; have[l] < 0 {
			out = append(out, l)
		}
	}
	return out
}

// equal returns an error that says how two snapshots differ.
func (s snapshot) equal(now snapshot) error {
	gone, come := s.missing(now), now.missing(s)
	if len(gone)+len(come) == 0 {
		return nil
	}
	return fmt.Errorf("%d lines are gone: %s; %d have come: %s", len(gone), few(gone), len(come), few(come))
}

// few is a list short enough to be read.
func few(lines []string) string {
	const n = 4
	if len(lines) > n {
		lines = append(slices.Clone(lines[:n]), "…")
	}
	return strings.Join(lines, " | ")
}

// kernels reads all nodes.
func (r *rig) kernels() (map[string]snapshot, error) {
	all := map[string]snapshot{}
	for i := range r.o.Nodes {
		s, err := r.o.kernel(r, nodeName(i+1))
		if err != nil {
			return nil, err
		}
		all[nodeName(i+1)] = s
	}
	return all, nil
}

// judgeKernels compares with what was there before.
//
// An agent that has just started may still be about to take over the rules that it found.
func (r *rig) judgeKernels(before map[string]snapshot, during string) error {
	for i := range r.o.Nodes {
		node := nodeName(i + 1)
		was := before[node].withoutPods()
		diff := await(r.ctx, "the same again", 10*time.Second, func() error {
			now, err := r.o.kernel(r, node)
			if err != nil {
				return final{err}
			}
			return was.equal(now.withoutPods())
		})
		r.verdict(diff == nil, "%s: the kernel of %s holds the same %d lines%s", during, node, len(was), because(diff))
	}
	return nil
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// same waits until a node's kernel holds what it held before, and returns how long that took.
func (r *rig) same(node string, before snapshot, limit time.Duration) (time.Duration, error) {
	begin := time.Now()
	err := await(r.ctx, "the kernel of "+node+" to be as before", limit, func() error {
		now, err := r.o.kernel(r, node)
		if err != nil {
			return err
		}
		return before.equal(now)
	})
	return time.Since(begin), err
}

// faultFlush takes away what Braid made, as another program or a person would. Within about a second it has
// to be there again; what is lost until then is counted, not judged.
func faultFlush(r *rig) error {
	if err := r.freshAgents(); err != nil {
		return err
	}
	const soon = 3 * time.Second // a second until the agent looks, the repair, and a machine that is busy
	for _, act := range []struct{ what, script string }{
		{"nft flush ruleset", "nft flush ruleset"},
		{"elements of the service maps deleted", `for f in ip ip6; do nft list table $f braid >/dev/null 2>&1 || continue
			for m in frontends slots; do nft flush map $f braid $m; done; done`},
		{"routes of the overlay deleted", "ip route flush proto 66; ip -6 route flush proto 66"},
		{"neighbours and forwarding entries of the overlay deleted", `for d in /sys/class/net/braid.vx*; do d=${d##*/}
			ip -o neigh show dev $d nud permanent | while read -r a _; do ip neigh del $a dev $d; done
			bridge fdb show dev $d | while read -r m rest; do case $m in 33:33*|01:00*) ;; *) bridge fdb del $m dev $d;; esac; done; done`},
		{"devices of the overlay deleted", "for d in /sys/class/net/braid.vx*; do ip link del ${d##*/}; done"},
		{"IP forwarding switched off", "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"},
	} {
		node := nodeName(1)
		before, err := r.o.kernel(r, node)
		if err != nil {
			return err
		}
		if err := r.leftBehind(); err != nil {
			return err
		}
		if _, err := r.o.output(r.ctx, node, true, "sh", "-c", act.script); err != nil {
			return err
		}
		took, err := r.same(node, before, 30*time.Second)
		r.verdict(err == nil && took < soon, "%s on %s: everything is back after %.1fs%s", act.what, node, took.Seconds(), because(err))
		all, err := r.traffic.take(r.ctx)
		if err != nil {
			return err
		}
		lost, _ := sum(all)
		r.note("until then: %s", lost)
		if err := pause(r.ctx, quiet); err != nil {
			return err
		}
		if err := r.judgeTraffic("after the repair"); err != nil {
			return err
		}
	}
	return nil
}
