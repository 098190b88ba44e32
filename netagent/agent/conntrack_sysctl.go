package agent

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/braidnet/braid/internal/kernel/sysctl"
)

// ConntrackConfig is what the agent sets of the kernel's connection tracking, as kube-proxy does and
// under its names (kube-proxy 1.36, conntrack sysctls). A zero leaves a value as it is.
type ConntrackConfig struct {
	MaxPerCore     int           // entries of the table per CPU …
	Min            int           // … but no fewer than this; without MaxPerCore it counts for nothing
	TCPEstablished time.Duration // idle time of established connections
	TCPCloseWait   time.Duration // of connections that one side has closed
	TCPBeLiberal   bool          // take segments outside of the window for valid
	UDP            time.Duration // idle time of flows without an answer
	UDPStream      time.Duration // of flows with one
}

// defaultConntrack are kube-proxy's defaults.
var defaultConntrack = ConntrackConfig{MaxPerCore: 32768, Min: 131072, TCPEstablished: 24 * time.Hour, TCPCloseWait: time.Hour}

// maxTracked bounds the table of machines with many CPUs, as kube-proxy does: an entry takes some 300
// bytes of the kernel's memory.
const maxTracked = 1 << 20

// max returns how many entries the table should hold; 0 leaves that as it is.
func (c ConntrackConfig) max(cpus int) int {
	if c.MaxPerCore <= 0 {
		return 0
	}
	if scaled := c.MaxPerCore * cpus; scaled > c.Min {
		return min(scaled, maxTracked)
	}
	return c.Min
}

// validate names the first setting that makes no sense.
func (c ConntrackConfig) validate() error {
	for name, bad := range map[string]bool{"max-per-core": c.MaxPerCore < 0, "min": c.Min < 0, "tcp-timeout-established": c.TCPEstablished < 0,
		"tcp-timeout-close-wait": c.TCPCloseWait < 0, "udp-timeout": c.UDP < 0, "udp-timeout-stream": c.UDPStream < 0} {
		if bad {
			return fmt.Errorf("conntrack-%s: is negative: use 0 to leave the kernel's value", name)
		}
	}
	return nil
}

// tuner sets the values and remembers what could not be set, to say it once.
type tuner struct {
	ConntrackConfig
	said map[string]bool
}

// tune sets what differs, returning what it changed, and a note for each value that cannot be set. The
// size of the table is only ever raised, and belongs to the whole machine: in a network namespace of its
// own a node cannot set it, and does not have to.
func (t *tuner) tune() (changed, notes []string) {
	set := func(name string, value int) {
		full := "net/netfilter/nf_conntrack_" + name
		wrote, err := sysctl.Set(full, strconv.Itoa(value))
		switch {
		case err != nil:
			notes = append(notes, err.Error())
		case wrote:
			changed = append(changed, fmt.Sprintf("set sysctl %s to %d", full, value))
		}
	}
	raise := func(name string, value int) {
		have, err := sysctl.Get("net/netfilter/nf_conntrack_" + name)
		if n, e := strconv.Atoi(have); err == nil && e == nil && n >= value {
			return
		}
		set(name, value)
	}
	if n := t.max(cpus()); n > 0 {
		raise("buckets", n/4) // first: a table that fills before it has room is slow
		raise("max", n)
	}
	for name, d := range map[string]time.Duration{"tcp_timeout_established": t.TCPEstablished, "tcp_timeout_close_wait": t.TCPCloseWait,
		"udp_timeout": t.UDP, "udp_timeout_stream": t.UDPStream} {
		if d > 0 {
			set(name, int(d/time.Second))
		}
	}
	if t.TCPBeLiberal {
		set("tcp_be_liberal", 1)
	}
	return changed, notes
}

// say logs each note once: it stays true until somebody changes the machine.
func (t *tuner) say(log *slog.Logger, notes []string) {
	for _, n := range notes {
		if !t.said[n] {
			log.Warn("connection tracking is left as it is", "why", n)
		}
		t.said[n] = true
	}
}

// cpus counts the machine's CPUs, not those this process was given.
func cpus() int {
	online, err := os.ReadFile("/sys/devices/system/cpu/online")
	if n := countList(strings.TrimSpace(string(online))); err == nil && n > 0 {
		return n
	}
	return runtime.NumCPU()
}

// countList counts the numbers in a list of the kernel such as "0-3,8"; 0 when it cannot be read.
func countList(list string) (n int) {
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || to < from {
			return 0
		}
		n += to - from + 1
	}
	return n
}

// tcpLiberal reports whether connection tracking in this network namespace is told to take TCP segments
// outside of the window for valid ones: then what it calls invalid is of another kind.
func tcpLiberal() bool {
	v, err := sysctl.Get("net/netfilter/nf_conntrack_tcp_be_liberal")
	return err == nil && v == "1"
}
