//go:build cgo && amd64

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/tun"
)

// node2 runs flannel's own udp backend, node1 Braid's data path, as while a cluster is being migrated.
func nodes(t *testing.T) (node1, node2 *nstest.NS, path *tun.Path) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "flannel")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build flannel: %v\n%s", err, out)
	}
	node1, node2 = nstest.New(t), nstest.New(t)
	nstest.Veth(t, node1, "eth0", node2, "eth0")
	for i, n := range []*nstest.NS{node1, node2} {
		n.Exec(t, "ip", "addr", "add", fmt.Sprintf("192.168.77.%d/24", i+1), "dev", "eth0")
		n.Exec(t, "ip", "addr", "add", fmt.Sprintf("10.244.%d.5/32", i+1), "dev", "lo") // a pod
	}
	dir := t.TempDir()
	lease := `{"Subnet":"10.244.1.0/24","Attrs":{"PublicIP":"192.168.77.1"}}`
	if err := os.WriteFile(filepath.Join(dir, "node1.json"), []byte(lease), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--dir", dir, "--name", "node2", "--subnet", "10.244.2.0/24", "udp")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	node2.Daemon(t, cmd)

	node1.Run(t, func() (err error) {
		path, err = tun.Open(desired.Relay{Dev: "braid.udp", Port: 8285, Local: []netip.Addr{netip.MustParseAddr("192.168.77.1")},
			Pods:    []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
			Tunnels: []desired.Tunnel{{Dst: netip.MustParsePrefix("10.244.2.0/24"), Via: netip.MustParseAddr("192.168.77.2")}}}, tun.Options{})
		return err
	})
	t.Cleanup(path.Close)
	node1.Exec(t, "ip", "link", "set", "braid.udp", "mtu", "1472", "up")
	node1.Exec(t, "ip", "route", "add", "10.244.2.0/24", "dev", "braid.udp", "src", "10.244.1.5")
	nstest.Wait(t, "flannel to carry a packet", func() error {
		_, err := node1.Output("ping", "-n", "-c", "1", "-W", "1", "-I", "10.244.1.5", "10.244.2.5")
		return err
	})
	return node1, node2, path
}

func TestFlannelNodeIsAPeer(t *testing.T) {
	node1, node2, path := nodes(t)
	for _, dir := range []struct {
		from, to *nstest.NS
		src, dst string
	}{{node1, node2, "10.244.1.5", "10.244.2.5"}, {node2, node1, "10.244.2.5", "10.244.1.5"}} {
		for _, size := range []string{"0", "56", "1444"} { // the last fills the MTU
			dir.from.Exec(t, "ping", "-n", "-c", "3", "-i", "0.01", "-W", "5", "-M", "do", "-s", size, "-I", dir.src, dir.dst)
		}
		echo(t, "tcp", dir.from, dir.to, dir.src, dir.dst, 4<<20)
		echo(t, "udp", dir.from, dir.to, dir.src, dir.dst, 1400)
		echo(t, "udp", dir.from, dir.to, dir.src, dir.dst, 9000) // fragments
	}
	for reason, n := range path.Stats().Dropped {
		if n != 0 {
			t.Errorf("%d packets dropped: %s", n, reason)
		}
	}
	if s := path.Stats(); s.Sent < 3000 || s.Received < 3000 {
		t.Errorf("%+v: the packets went another way", s)
	}
}

// echo sends bytes from node to node and compares what comes back.
func echo(t *testing.T, network string, from, to *nstest.NS, src, dst string, size int) {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	addr := serve(t, network, to, dst)
	var c net.Conn
	from.Run(t, func() (err error) {
		d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(src)}}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(src)}
		}
		c, err = d.DialContext(context.Background(), network, addr)
		return err
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	go func() { _, _ = c.Write(data) }()
	got := make([]byte, size)
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("%s %s to %s, %d bytes: %v", network, src, dst, size, err)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%s %s to %s: other bytes came back", network, src, dst)
	}
}

// serve sends back what comes, until the test ends.
func serve(t *testing.T, network string, at *nstest.NS, ip string) (addr string) {
	t.Helper()
	if network == "tcp" {
		var l net.Listener
		at.Run(t, func() (err error) { l, err = net.Listen("tcp", ip+":0"); return err })
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); c.Close() }()
			}
		}()
		return l.Addr().String()
	}
	var u net.PacketConn
	at.Run(t, func() (err error) { u, err = net.ListenPacket("udp", ip+":0"); return err })
	t.Cleanup(func() { u.Close() })
	go func() {
		for b := make([]byte, 1<<16); ; {
			n, from, err := u.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = u.WriteTo(b[:n], from)
			}
		}
	}()
	return u.LocalAddr().String()
}
