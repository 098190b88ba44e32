// Command guest runs tests of the overlay on Debian's kernel, in a virtual machine that emulates its
// processor: IP in IP and kernel WireGuard, which the kernel of a small machine may not have. It needs
// Debian's package manager, and nothing of the machine but a folder. Times taken there mean nothing.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// script is the guest's first process. What it runs is in /run-tests.
const script = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ CI=true
mkdir -p /proc /sys /dev /tmp /run /var/lib /sbin
ln -s /bin/busybox /sbin/modprobe # which the kernel calls when a device of a kind is asked for
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
depmod
modprobe tun # its device file comes with it
uname -r
sh /run-tests
echo "guest ended with $?"
poweroff -f
`

var ended = regexp.MustCompile(`^guest ended with (\d+)`)

func main() {
	dir := flag.String("dir", "bin/guest", "folder for the kernel and the guest's files")
	bin := flag.String("bin", "bin", "folder of netagent, coredns and braid")
	limit := flag.Duration("timeout", 20*time.Minute, "give up after this long")
	run := flag.String("run", "Overlay(Connects|Repairs|Sweeps).*/(ipip|wireguard)|WireGuard(Keys|Detour)", "tests of netagent/agent to run in the guest, as for go test")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	if err := boot(ctx, *dir, *bin, *run); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

// boot gets the kernel, packs the guest's files and runs the tests.
func boot(ctx context.Context, dir, bin, run string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	kernel, err := packages(ctx, dir)
	if err != nil {
		return err
	}
	test := filepath.Join(dir, "agent.test")
	if err := command(ctx, "", "go", "test", "-c", "-o", test, "./netagent/agent"); err != nil {
		return err
	}
	initrd := filepath.Join(dir, "initrd")
	if err := pack(initrd, root{dir: dir, bin: bin, test: test, tests: testScript(run)}); err != nil {
		return fmt.Errorf("pack the guest's files: %w", err)
	}
	return qemu(ctx, kernel, initrd)
}

// testScript runs the agent's tests and then a playground, whose agents make the overlay they are told to.
func testScript(run string) string {
	return `set -e
cd /tmp
/bin/agent.test -test.v -test.run '` + run + `'
export PATH=$PATH:/opt/braid
reached() {
  netagent lab exec a -- ping -n -c 3 10.244.2.1
  netagent lab exec a -- ping -n -c 3 fd00:10:244:2::1
  netagent lab exec a -- wget -O - http://b.default.svc.cluster.local
}
key() { cat /run/braid-lab/braid/nodes/n1/state/wireguard.key; }
for backend in ipip wireguard; do
  netagent lab up --nodes 2 --backend $backend --timeout 5m --agent-setting 'wireguard-key-age: 30s' /pods.yaml
  netagent lab exec node/n1 -- ip -d link show type $backend | grep braid
  reached
  if [ $backend = wireguard ]; then
    netagent lab exec node/n1 -- netagent status | grep 'served by the kernel'
    first=$(key)
    for try in $(seq 120); do [ "$(key)" = "$first" ] || break; sleep 1; done
    [ "$(key)" != "$first" ] && echo "another key is in use after ${try}s"
    reached
  fi
  netagent lab down
done
netagent lab up --nodes 2 --backend vxlan --timeout 5m --agent-setting 'vxlan-gbp: true' /pods.yaml
netagent lab exec node/n1 -- ip -d link show braid.vx4 | grep ' gbp'
reached
netagent lab down
`
}

const pods = `apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {nodeName: n1, containers: [{name: c, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: b}}
spec: {nodeName: n2, containers: [{name: c, image: none, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {selector: {app: b}, ports: [{port: 80}]}
`

// packages unpacks the newest kernel for virtual machines, and a shell, into dir without installing
// them. It returns the kernel's file.
func packages(ctx context.Context, dir string) (kernel string, err error) {
	if found, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*")); len(found) == 1 {
		return found[0], nil
	}
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--important", "linux-image-cloud-amd64").Output()
	if err != nil {
		return "", fmt.Errorf("look for Debian's kernel (apt-get update?): %w", err)
	}
	name := regexp.MustCompile(`linux-image-\S+-cloud-amd64`).FindString(string(out))
	if name == "" {
		return "", fmt.Errorf("linux-image-cloud-amd64 names no kernel:\n%s", out)
	}
	if err := command(ctx, dir, "apt-get", "download", "-q", name, "busybox-static"); err != nil {
		return "", err
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	for _, f := range files {
		if err := command(ctx, dir, "dpkg-deb", "-x", filepath.Base(f), "."); err != nil {
			return "", err
		}
	}
	found, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if len(found) != 1 {
		return "", fmt.Errorf("%s has not one kernel but %v: remove the folder and try again", dir, found)
	}
	return found[0], nil
}

func command(ctx context.Context, dir, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// qemu runs the machine, shows what it prints, and fails unless its tests say that they passed.
func qemu(ctx context.Context, kernel, initrd string) error {
	c := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536",
		"-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/init")
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		return fmt.Errorf("%w: install the package qemu-system-x86", err)
	}
	result := ""
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		fmt.Print(line)
		if m := ended.FindStringSubmatch(line); m != nil {
			result = m[1]
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	err = c.Wait()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("not done in time: %w", ctx.Err())
	case result == "":
		return fmt.Errorf("the machine ended before its tests did: %v", err)
	case result != "0":
		return fmt.Errorf("its tests failed with code %s", result)
	}
	return nil
}
