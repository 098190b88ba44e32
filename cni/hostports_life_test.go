package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestTakenHostPort(t *testing.T) {
	h := newPortHost(t)
	first := h.run("first", "8000:8080/tcp")
	second := newPod(t, "second")
	for mapping, holder := range map[string]string{"8000:9090/tcp": "8000/tcp", "::  8000:9090/tcp": "8000/tcp", "0.0.0.0 8000:9090/TCP": "8000/tcp"} {
		_, failure := h.call("ADD", second.attach, h.ports("8001:9090/tcp", strings.ReplaceAll(mapping, "  ", " ")))
		text := "host port " + holder + " belongs to pod default/first (" + first.hostVeth() + ")"
		if failure == nil || failure.Code != types.ErrTryAgainLater || !strings.Contains(failure.Msg, text) {
			t.Errorf("ADD with %s: %v, want %q", mapping, failure, text)
		}
	}
	refused(t, h.client, "tcp", join(nodeAddr4, 8001)) // nothing of a refused ADD stays
	want(t, h.client, "tcp", "", join(nodeAddr4, 8000), "first", "")
	if len(h.reserved()) != 2 {
		t.Errorf("addresses reserved: %v", h.reserved())
	}
	// Another protocol is another port. And a pod that went without DEL holds nothing.
	h.run("udp", "8000:9090/udp")
	h.Exec(t, "ip", "link", "del", first.hostVeth())
	h.run("heir", "8000:8080/tcp")
	want(t, h.client, "tcp", "", join(nodeAddr4, 8000), "heir", "")
	h.del(first.attach)
	want(t, h.client, "tcp", "", join(nodeAddr4, 8000), "heir", "")
}

// portElements counts the elements of our tables.
func (h *host) portElements() (n int) {
	h.t.Helper()
	for _, family := range []string{"ip", "ip6"} {
		if out, err := h.Output("nft", "list", "table", family, "braid-hostports"); err == nil {
			n += strings.Count(out, "comment \"brd")
		}
	}
	return n
}

func TestDelTakesExactlyItsHostPorts(t *testing.T) {
	h := newPortHost(t)
	a, b := h.run("pod-a", "8000:8080/tcp", "8001:8080/udp"), h.run("pod-b", "9000:8080/tcp")
	all, ofB := h.portElements(), 2*2 // a port and a hairpin in each family
	if all != ofB+2*3 {
		t.Errorf("%d elements", all)
	}
	for range 2 {
		if _, failure := h.call("DEL", a.attach, h.with(map[string]any{"ipam": map[string]any{"dataDir": h.dir}, "mtu": "big", "runtimeConfig": 7})); failure != nil {
			t.Fatal(failure)
		}
		if n := h.portElements(); n != ofB {
			t.Errorf("%d elements left, want the %d of pod-b", n, ofB)
		}
		refused(t, h.client, "tcp", join(nodeAddr4, 8000))
		want(t, h.client, "tcp", "", join(nodeAddr6, 9000), "pod-b", "")
	}
	h.del(b.attach)
	h.clean("after DEL")
	if n := h.portElements(); n != 0 {
		t.Errorf("%d elements left", n)
	}
}

// TestFailedAddLeavesNoHostPort fails the very last step: the result has nowhere to go.
func TestFailedAddLeavesNoHostPort(t *testing.T) {
	h := newPortHost(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	p := newPod(t, "pod")
	cmd, _, _ := h.command("ADD", p.attach, h.ports("8000:8080/tcp"))
	cmd.Stdout = full
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if cmd.Wait() == nil {
		t.Fatal("ADD succeeded without a result")
	}
	h.clean("after a failed ADD")
	if n := h.portElements(); n != 0 {
		t.Errorf("%d elements left", n)
	}
}

func TestCheckMissesHostPorts(t *testing.T) {
	h := newPortHost(t)
	p := newPod(t, "pod")
	conf := h.ports("8000:8080/tcp", nodeAddr4+" 8001:8080/udp")
	out, failure := h.call("ADD", p.attach, conf)
	if failure != nil {
		t.Fatal(failure)
	}
	prev := h.result(out)
	prev.CNIVersion = "1.1.0"
	check := func() *types.Error {
		h.conf["prevResult"] = prev
		defer delete(h.conf, "prevResult")
		_, failure := h.call("CHECK", p.attach, h.ports("8000:8080/tcp", nodeAddr4+" 8001:8080/udp"))
		return failure
	}
	if failure := check(); failure != nil {
		t.Fatalf("CHECK of a whole attachment: %v", failure)
	}
	for _, c := range []struct{ damage, want string }{
		{"nft delete element ip6 braid-hostports ports { tcp . 8000 }", "host port 8000/tcp does not lead to [fd00:10:244:1::2]:8080"},
		{"nft delete element ip braid-hostports addresses { " + nodeAddr4 + " . udp . 8001 }", "host port 192.0.2.1:8001/udp does not lead to 10.244.1.2:8080"},
		{"nft flush set ip braid-hostports hairpins", "10.244.1.2 cannot reach itself by host port 8000/tcp"},
		{"nft flush chain ip braid-hostports loopback", "nftables table ip braid-hostports: the rules of its chain loopback were changed"},
		{"sysctl -qw net.ipv4.conf.braid0.route_localnet=0", `route_localnet is "0", expected 1`},
		{"nft delete table ip6 braid-hostports", "nftables table ip6 braid-hostports: it is missing"},
	} {
		words := strings.Fields(c.damage)
		h.Exec(t, words[0], words[1:]...)
		if failure := check(); failure == nil || failure.Code != errDiffers || !strings.Contains(failure.Details, c.want) {
			t.Errorf("after %q: %v, want %q", c.damage, failure, c.want)
		}
	}
	// The next ADD repairs the tables, and what other pods had in the part that is still there stays.
	h.run("next", "9000:9090/tcp")
	h.run("more", "9001:9090/tcp")
	want(t, h.client, "tcp", "", join(nodeAddr4, 9000), "next", "")
	want(t, h.client, "tcp", "", join(nodeAddr6, 9000), "next", "")
	p.serve(t)
	want(t, h.client, "tcp", "", join(nodeAddr4, 8000), "pod", "")
}

func TestHostPortErrors(t *testing.T) {
	h := newHost(t)
	delete(h.conf["ipam"].(map[string]any), "ranges")
	h.conf["ipam"].(map[string]any)["subnet"] = "10.244.1.0/24"
	p := newPod(t, "pod")
	for mapping, text := range map[string]string{
		"0:80/tcp":               "portMappings[0].hostPort is 0: expected 1 to 65535",
		"80:65536/tcp":           "portMappings[0].containerPort is 65536: expected 1 to 65535",
		"80:80/icmp":             `portMappings[0].protocol is "icmp": expected tcp, udp or sctp`,
		"here 80:80/tcp":         `portMappings[0].hostIP is "here": expected an address`,
		"192.0.2.1%x 80:80/tcp":  "portMappings[0].hostIP is",
		"127.0.0.1 80:80/tcp;81": "portMappings[1] is for host port 127.0.0.1:80/tcp: expected each once",
	} {
		list := []string{mapping}
		if one, port, twice := strings.Cut(mapping, ";"); twice {
			list = []string{one, one, strings.Replace(one, ":80/", ":"+port+"/", 1)}
		}
		conf := h.ports(list...)
		_, failure := h.call("ADD", p.attach, conf)
		if failure == nil || failure.Code != types.ErrInvalidNetworkConfig && failure.Code != 7 || !strings.Contains(failure.Msg, strings.Replace(text, "[1]", "[2]", 1)) {
			t.Errorf("%s: %v, want %q", mapping, failure, text)
		}
	}
	h.clean("after refused ADDs")
}

// TestHostPortOfAnotherFamily: it is left out, which the log says, and the rest of what the pod asks for is there.
func TestHostPortOfAnotherFamily(t *testing.T) {
	h := newPortHost(t)
	h.conf["ipam"].(map[string]any)["ranges"] = []any{[]any{map[string]string{"subnet": "10.244.1.0/24"}}}
	p := newPod(t, "pod")
	p.serve(t)
	conf := h.ports(":: 8000:8080/tcp", "2001:db8::1 8001:8080/tcp", "0.0.0.0 8002:8080/tcp")
	cmd, stdout, stderr := h.command("ADD", p.attach, conf)
	if err := errors.Join(h.Start(cmd), cmd.Wait()); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout, stderr)
	}
	if text := stderr.String(); strings.Count(text, "leads nowhere") != 2 || !strings.Contains(text, "[2001:db8::1]:8001/tcp") {
		t.Errorf("the log says\n%s", text)
	}
	want(t, h.client, "tcp", "", join(nodeAddr4, 8002), "pod", "")
	refused(t, h.client, "tcp", join(nodeAddr4, 8000))
	h.conf["prevResult"] = h.result(stdout.String())
	if _, failure := h.call("CHECK", p.attach, h.ports(":: 8000:8080/tcp", "2001:db8::1 8001:8080/tcp", "0.0.0.0 8002:8080/tcp")); failure != nil {
		t.Errorf("CHECK: %v", failure)
	}
}

// TestManyHostPortsAtOnce: pods that come and go at the same time do not get in each other's way.
func TestManyHostPortsAtOnce(t *testing.T) {
	h := newPortHost(t)
	const n = 20
	type outcome struct {
		id      string
		failure *types.Error
	}
	results := make(chan outcome)
	pods := make([]*pod, n)
	for i := range pods {
		pods[i] = newPod(t, fmt.Sprintf("pod%d", i))
		conf := h.ports(fmt.Sprintf("%d:8080/tcp", 8000+i), fmt.Sprintf("%d:8080/udp", 8000+i), "9999:8080/tcp")
		go func() {
			_, failure := h.call("ADD", pods[i].attach, conf)
			results <- outcome{pods[i].id, failure}
		}()
	}
	var winners []string
	for range pods {
		if r := <-results; r.failure == nil {
			winners = append(winners, r.id)
		} else if !strings.Contains(r.failure.Msg, "host port 9999/tcp belongs to pod default/pod") {
			t.Errorf("%s: %v", r.id, r.failure)
		}
	}
	if len(winners) != 1 || h.portElements() != 8 {
		t.Fatalf("%v got the one port, %d elements", winners, h.portElements())
	}
	for i, p := range pods {
		go func() {
			if p.id == winners[0] {
				_, failure := h.call("DEL", p.attach, h.with(nil))
				results <- outcome{p.id, failure}
				return
			}
			_, failure := h.call("ADD", p.attach, h.ports(fmt.Sprintf("%d:8080/tcp", 8000+i)))
			results <- outcome{p.id, failure}
		}()
	}
	for range pods {
		if r := <-results; r.failure != nil {
			t.Errorf("%s: %v", r.id, r.failure)
		}
	}
	if got := h.portElements(); got != 4*(n-1) {
		t.Errorf("%d elements, want %d", got, 4*(n-1))
	}
	i := slices.IndexFunc(pods, func(p *pod) bool { return p.id != winners[0] })
	pods[i].serve(t)
	want(t, h.client, "tcp", "", join(nodeAddr4, 8000+i), pods[i].id, "192.0.2.2")
}
