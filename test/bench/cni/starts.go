package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/braidnet/braid/test/bench/rig"
)

// nothing is the least that a plugin in Go can be.
const nothing = "package main\n\nfunc main() {}\n"

// startRounds is how often each is started: one takes a millisecond.
const startRounds = 200

// starts prints what it takes to start our plugin, and to answer STATUS, beside a Go program that does nothing.
func starts(o *options) error {
	source, program := filepath.Join(o.dir, "nothing.go"), filepath.Join(o.dir, "nothing")
	if err := os.WriteFile(source, []byte(nothing), 0o644); err != nil {
		return err
	}
	if out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", program, source).CombinedOutput(); err != nil {
		return fmt.Errorf("build a program that does nothing: %w: %s", err, out)
	}
	s := &subject{name: "braid", plugins: ours}
	if err := s.start(o, false); err != nil {
		return err
	}
	defer s.stop()
	plugin := ours(filepath.Join(o.dir, "addresses"))[0].(object)
	plugin["cniVersion"], plugin["name"] = "1.1.0", "bench" // as the library gives it to the plugin
	conf, err := json.Marshal(plugin)
	if err != nil {
		return err
	}
	kinds := []struct {
		name, program, command string
		times                  []time.Duration
	}{{name: "a Go program that does nothing", program: program}, {name: "braid, VERSION", program: filepath.Join(o.dir, "braid"), command: "VERSION"},
		{name: "braid, STATUS", program: filepath.Join(o.dir, "braid"), command: "STATUS"}}
	err = s.node.Do(func() error {
		for range startRounds {
			for i := range kinds {
				k := &kinds[i]
				took, err := started(k.program, k.command, conf)
				if err != nil {
					return fmt.Errorf("%s: %w", k.name, err)
				}
				k.times = append(k.times, took)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Printf("\n### start\n\n| milliseconds | p50 | p99 |\n|---|---|---|\n")
	for _, k := range kinds {
		fmt.Printf("| %s | %.2f | %.2f |\n", k.name, ms(rig.Percentile(k.times, 50)), ms(rig.Percentile(k.times, 99)))
	}
	return nil
}

// started runs a program to its end.
func started(program, command string, conf []byte) (time.Duration, error) {
	c := exec.Command(program)
	c.Env = []string{"CNI_COMMAND=" + command, "CNI_PATH=" + filepath.Dir(program)}
	c.Stdin = bytes.NewReader(conf)
	began := time.Now()
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return time.Since(began), err
}
