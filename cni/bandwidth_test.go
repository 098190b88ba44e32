package main

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

func (h *host) bandwidth(limits map[string]any) []byte {
	h.t.Helper()
	return h.with(map[string]any{"runtimeConfig": map[string]any{"bandwidth": limits}})
}

// carry moves bytes over one connection to a listener in the node: from the pod, and then back.
func (p *pod) carry(t *testing.T, h *host, amount int64) {
	t.Helper()
	var l net.Listener
	h.Run(t, func() (err error) { l, err = net.Listen("tcp", "10.244.1.1:7000"); return err })
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			if _, err = io.CopyN(io.Discard, c, amount); err == nil {
				_, err = c.Write(make([]byte, amount))
			}
		}
		done <- err
	}()
	var c net.Conn
	p.Run(t, func() (err error) { c, err = net.Dial("tcp", "10.244.1.1:7000"); return err })
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := c.Write(make([]byte, amount)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, c, amount); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

var sent = regexp.MustCompile(`qdisc tbf.* rate (\S+) .*\n Sent (\d+) bytes .*dropped \d+, overlimits (\d+)`)

// bucket is what the token bucket of a device is set to and has counted.
func (h *host) bucket(dev string) (rate string, bytes, delayed int) {
	h.t.Helper()
	m := sent.FindStringSubmatch(h.Exec(h.t, "tc", "-s", "qdisc", "show", "dev", dev))
	if m == nil {
		return "", 0, 0
	}
	bytes, _ = strconv.Atoi(m[2])
	delayed, _ = strconv.Atoi(m[3])
	return m[1], bytes, delayed
}

func TestBandwidth(t *testing.T) {
	h := newHost(t)
	p, free := newPod(t, "pod"), newPod(t, "free")
	h.add(free.attach)
	// Bursts as runtimes give them that were asked for none.
	limits := map[string]any{"ingressRate": 16_000_000, "ingressBurst": 4294967295, "egressRate": 8_000_000, "egressBurst": 2147483647}
	out, failure := h.call("ADD", p.attach, h.bandwidth(limits))
	if failure != nil {
		t.Fatal(failure)
	}
	p.ping(t, "10.244.1.1", "-s", "4000")
	p.ping(t, "fd00:10:244:1::1")
	const amount = 1 << 20
	p.carry(t, h, amount)
	ifb := "bwp" + strings.TrimPrefix(p.hostVeth(), "brd")
	for dev, want := range map[string]string{p.hostVeth(): "16Mbit", ifb: "8Mbit"} {
		rate, bytes, delayed := h.bucket(dev)
		if rate != want || bytes < amount || delayed == 0 {
			t.Errorf("%s: rate %s, want %s; %d bytes passed of %d, %d times delayed", dev, rate, want, bytes, amount, delayed)
		}
	}
	if rate, _, _ := h.bucket(free.hostVeth()); rate != "" {
		t.Errorf("a pod without limits has %s", rate)
	}

	prev := h.result(out)
	prev.CNIVersion = "1.1.0"
	h.conf["prevResult"] = prev
	if _, failure := h.call("CHECK", p.attach, h.bandwidth(limits)); failure != nil {
		t.Errorf("CHECK: %v", failure)
	}
	h.Exec(t, "tc", "qdisc", "del", "dev", ifb, "root")
	if _, failure := h.call("CHECK", p.attach, h.bandwidth(limits)); failure == nil || !strings.Contains(failure.Details, ifb+" is limited to 0 bit/s, expected 8000000") {
		t.Errorf("CHECK without a limit: %v", failure)
	}
	if _, failure := h.call("CHECK", p.attach, h.with(nil)); failure != nil { // as with the reference's bandwidth plugin behind ours
		t.Errorf("CHECK where the limits are another plugin's: %v", failure)
	}
	delete(h.conf, "prevResult")

	h.Exec(t, "ip", "link", "del", p.hostVeth()) // the pod is gone, the device is not
	for range 2 {
		h.del(p.attach)
	}
	h.del(free.attach)
	h.clean("after DEL")
}

func TestBandwidthErrors(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	for key, want := range map[string]string{
		"ingressRate=1": "ingressRate is 1: expected bits per second", "egressBurst=1": "egressBurst is 1 without a rate",
		"egressRate=-1":                      "egressRate is of type number -1: expected a whole number",
		"ingressRate=8000 ingressBurst=8000": fmt.Sprintf("ingressBurst is 8000: expected bits, %d at least", 65535*8),
	} {
		limits := map[string]any{}
		for _, pair := range strings.Fields(key) {
			k, v, _ := strings.Cut(pair, "=")
			limits[k], _ = strconv.Atoi(v)
		}
		if _, failure := h.call("ADD", p.attach, h.bandwidth(limits)); failure == nil || failure.Code != types.ErrInvalidNetworkConfig || !strings.Contains(failure.Msg, want) {
			t.Errorf("%s: %v, want %q", key, failure, want)
		}
	}
	// What stands in the way of the device undoes everything.
	h.Exec(t, "ip", "link", "add", "bwp"+strings.TrimPrefix(p.hostVeth(), "brd"), "type", "bridge")
	if _, failure := h.call("ADD", p.attach, h.bandwidth(map[string]any{"egressRate": 8_000_000})); failure == nil || !strings.Contains(failure.Msg, "file exists") {
		t.Errorf("ADD: %v", failure)
	}
	h.Exec(t, "ip", "link", "del", "bwp"+strings.TrimPrefix(p.hostVeth(), "brd"))
	h.clean("after refused ADDs")
}
