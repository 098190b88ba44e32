package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/braidnet/braid/cni/ipam"
	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// TestIsolate: a pod is connected when the agent has its policies in the kernel, or the kernel cuts off
// whom it does not know; else it waits.
func TestIsolate(t *testing.T) {
	ns := nstest.New(t)
	answer := http.StatusOK
	var told map[string]any
	agent := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/attachments" {
			t.Errorf("asked %s %s", r.Method, r.URL)
		}
		if err := json.NewDecoder(r.Body).Decode(&told); err != nil {
			t.Error(err)
		}
		w.WriteHeader(answer)
	}))
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	agent.Listener = listener
	agent.Start()
	defer agent.Close()

	four := []ipam.Lease{{Addr: netip.MustParseAddr("10.0.0.5")}}
	both := append(four, ipam.Lease{Addr: netip.MustParseAddr("fd00::5")})
	first := false
	run := func(socket string, leases []ipam.Lease) (code uint) {
		ns.Run(t, func() error {
			conf := &config{PolicySocket: socket, PolicyFirst: first, Log: slog.New(slog.DiscardHandler)}
			err := isolate(conf, &skel.CmdArgs{ContainerID: "c"}, podID{"shop/web", "u1"}, "brd1", leases)
			var e *types.Error
			if errors.As(err, &e) {
				code = e.Code
			} else if err != nil {
				t.Errorf("an error without a code: %v", err)
			}
			return nil
		})
		return code
	}
	is := func(what string, got, want uint) {
		t.Helper()
		if got != want {
			t.Errorf("%s: code %d, want %d", what, got, want)
		}
	}
	is("nobody enforces policy", run("", both), 0)
	is("the agent has it", run(socket, both), 0)
	if told["namespace"] != "shop" || told["name"] != "web" || told["uid"] != "u1" || told["link"] != "brd1" || len(told["addresses"].([]any)) != 2 {
		t.Errorf("the agent was told %v", told)
	}
	answer = http.StatusServiceUnavailable
	is("the agent does not know the pod, nothing in the kernel", run(socket, four), types.ErrTryAgainLater)
	is("no agent, nothing in the kernel", run(socket+"x", four), types.ErrTryAgainLater)
	ns.Exec(t, "nft", "add", "table", "ip", desired.PolicyTable)
	is("no agent, a table without maps", run(socket+"x", four), types.ErrTryAgainLater)
	for _, m := range []string{desired.PolicyEgress, desired.PolicyIngress} {
		ns.Exec(t, "nft", "add", "map", "ip", desired.PolicyTable, m, "{ type ipv4_addr : verdict; elements = { 10.0.0.4 : drop, 10.0.0.6 : accept }; }")
	}
	is("the agent does not know the pod, the kernel cuts it off", run(socket, four), 0)
	is("no agent, the kernel cuts it off", run(socket+"x", four), 0)
	is("no agent, the kernel cuts off IPv4 only", run(socket+"x", both), types.ErrTryAgainLater)
	// A pod before had the address, and nobody has taken it out since.
	for _, m := range []string{desired.PolicyEgress, desired.PolicyIngress} {
		ns.Exec(t, "nft", "add", "element", "ip", desired.PolicyTable, m, "{ 10.0.0.5 : accept }")
		is("no agent, the kernel knows the address in "+m, run(socket+"x", four), types.ErrTryAgainLater)
		ns.Exec(t, "nft", "delete", "element", "ip", desired.PolicyTable, m, "{ 10.0.0.5 }")
	}
	ns.Exec(t, "nft", "delete", "table", "ip", desired.PolicyTable)
	ns.Exec(t, "ipset", "create", xt.PolicySet(false)+"b", "hash:ip")
	is("no agent, sets that no rule refers to", run(socket+"x", four), types.ErrTryAgainLater)
	ns.Exec(t, "iptables-nft", "-A", "FORWARD", "-m", "set", "--match-set", xt.PolicySet(false)+"b", "src", "-j", "RETURN")
	is("no agent, iptables rules cut it off", run(socket+"x", four), 0)
	is("no agent, iptables rules cut off IPv4 only", run(socket+"x", both), types.ErrTryAgainLater)
	for _, prefix := range xt.PolicyPods(false) {
		ns.Exec(t, "ipset", "create", prefix+"abc-a", "hash:ip")
		ns.Exec(t, "ipset", "add", prefix+"abc-a", "10.0.0.5")
		is("no agent, the kernel knows the address in "+prefix+"abc-a", run(socket+"x", four), types.ErrTryAgainLater)
		ns.Exec(t, "ipset", "destroy", prefix+"abc-a")
	}
	is("no agent, iptables rules cut it off again", run(socket+"x", four), 0)
	first = true
	is("the agent does not know the pod, and has to", run(socket, four), types.ErrTryAgainLater)
	is("no agent, and there has to be one", run(socket+"x", four), types.ErrTryAgainLater)
	is("nobody enforces policy, and somebody has to know the pod first", run("", four), 0)
	answer = http.StatusOK
	is("the agent has it, and has to", run(socket, four), 0)
}

// TestAgentThatHangs: it takes the connection and never answers. ADD ends, and the pod is either refused, with nothing left
// of it, or cut off by what the kernel has of policies; it never talks to anybody.
func TestAgentThatHangs(t *testing.T) {
	t.Parallel()
	// As the agent writes them: who is in none of its sets is refused, on the way through the node and to it.
	cutOff := func(h *host) {
		for family, tool := range map[bool]string{false: "iptables-nft", true: "ip6tables-nft"} {
			set := xt.PolicySet(family) + "a"
			h.Exec(t, "ipset", "create", set, "hash:ip", "family", map[bool]string{false: "inet", true: "inet6"}[family])
			for _, chain := range []string{"FORWARD", "INPUT"} {
				h.Exec(t, tool, "-A", chain, "-i", "braid0", "-m", "set", "--match-set", set, "src", "-j", "RETURN")
				h.Exec(t, tool, "-A", chain, "-i", "braid0", "-j", "REJECT")
			}
		}
	}
	for name, c := range map[string]struct {
		prepare func(h *host)
		want    string // of the error
	}{
		"nothing in the kernel":       {func(*host) {}, "no policy is in force on this node"},
		"iptables rules":              {cutOff, ""},
		"address of the pod before":   {func(h *host) { cutOff(h); h.Exec(t, "ipset", "add", xt.PolicySet(false)+"a", "10.244.1.2") }, "address 10.244.1.2 still has the policies of a pod before"},
		"iptables rules, policyFirst": {func(h *host) { cutOff(h); h.conf["policyFirst"] = true }, "policyFirst makes it wait"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.conf["policySocket"] = filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", h.conf["policySocket"].(string))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			connected := make(chan net.Conn, 1)
			go func() {
				if c, err := l.Accept(); err == nil {
					connected <- c
				}
			}()
			c.prepare(h)
			p := newPod(t, "pod")
			_, failure := h.call("ADD", p.attach, h.with(nil))
			select {
			case conn := <-connected:
				defer conn.Close()
			default:
				t.Error("ADD did not ask the agent")
			}
			if c.want != "" {
				if failure == nil || failure.Code != types.ErrTryAgainLater || !strings.Contains(fmt.Sprint(failure.Msg), c.want) {
					t.Errorf("ADD: %v", failure)
				}
				h.clean("after an ADD that was refused")
				return
			}
			if failure != nil {
				t.Fatalf("ADD: %v", failure)
			}
			for _, to := range []string{"10.244.1.1", "fd00:10:244:1::1"} {
				if out, err := p.Output("ping", "-n", "-c", "1", "-W", "1", to); err == nil {
					t.Errorf("a pod that nobody knows reaches %s:\n%s", to, out)
				}
			}
			h.Exec(t, "ipset", "add", xt.PolicySet(false)+"a", "10.244.1.2") // the agent is back
			p.ping(t, "10.244.1.1")
			h.del(p.attach)
		})
	}
}
