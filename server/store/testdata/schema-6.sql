-- A database of schema 6 as SQL text (sqlite3 .dump): schema-4.sql, brought to 6 by the steps of commit 9bce1ad,
-- with what schemas 5 and 6 added.
PRAGMA application_id=1398362692;
PRAGMA user_version=6;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE attempts (
  job TEXT NOT NULL REFERENCES jobs (name),
  number INTEGER NOT NULL CHECK (number > 0),
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 10),
  started INTEGER NOT NULL CHECK (started IN (0, 1)),
  resume_from TEXT NOT NULL,
  failure TEXT,
  create_time INTEGER NOT NULL,
  end_time INTEGER, stop_reason INTEGER NOT NULL DEFAULT 0
  CHECK (stop_reason BETWEEN 0 AND 6),
  PRIMARY KEY (job, number),
  CHECK ((state >= 6) = (end_time IS NOT NULL))
) STRICT;
INSERT INTO "attempts" VALUES('projects/p/jobs/succeeded',1,7,1,'','{"reason":"TRAINER_SIGNAL","message":"rank 2 was killed by signal 9","rank":2,"node":"b","exit_code":0,"signal":9,"last_lines":["line \"one\"","line two"],"step":0,"cascade":[]}',86401000000,86410000000,0);
INSERT INTO "attempts" VALUES('projects/p/jobs/succeeded',2,6,1,'/artifacts/p/projects/p/jobs/succeeded/checkpoints/step-5',NULL,86471000000,86481000000,0);
INSERT INTO "attempts" VALUES('projects/p/jobs/failed',1,7,1,'','{"reason":"NAN_LOSS","message":"loss is NaN at step 3","rank":0,"node":"a","exit_code":1,"signal":0,"last_lines":["line \"one\"","line two"],"step":0,"cascade":[]}',86483000000,86486000000,0);
INSERT INTO "attempts" VALUES('projects/p/jobs/running',1,4,1,'',NULL,86489000000,NULL,0);
INSERT INTO "attempts" VALUES('projects/p/jobs/stopping',1,5,1,'',NULL,86497000000,NULL,1);
INSERT INTO "attempts" VALUES('projects/p/jobs/starting',1,1,0,'',NULL,86501000000,NULL,0);
INSERT INTO "attempts" VALUES('projects/p/jobs/paused',1,8,1,'',NULL,86504000000,86507000000,1);
CREATE TABLE audit (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  time INTEGER NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  target TEXT NOT NULL,
  message TEXT NOT NULL
) STRICT;
CREATE TABLE checkpoints (
  job TEXT NOT NULL REFERENCES jobs (name),
  step INTEGER NOT NULL CHECK (step >= 0),
  attempt INTEGER NOT NULL,
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 4),
  path TEXT NOT NULL,
  staging_path TEXT NOT NULL,
  manifest_crc32c INTEGER NOT NULL,
  size_bytes INTEGER NOT NULL,
  loss REAL,
  validation_loss REAL,
  final INTEGER NOT NULL CHECK (final IN (0, 1)),
  create_time INTEGER NOT NULL, commit_seq INTEGER NOT NULL DEFAULT 0 CHECK (commit_seq >= 0),
  PRIMARY KEY (job, step)
) STRICT;
INSERT INTO "checkpoints" VALUES('projects/p/jobs/succeeded',5,1,2,'/artifacts/p/projects/p/jobs/succeeded/checkpoints/step-5','/artifacts/p/staging/1/step-5',2399187460,4096,2.5,2.75,0,86408000000,1);
INSERT INTO "checkpoints" VALUES('projects/p/jobs/succeeded',8,2,2,'/artifacts/p/projects/p/jobs/succeeded/checkpoints/step-8','/artifacts/p/staging/2/step-8',2399187460,4096,2.5,2.75,0,86478000000,2);
INSERT INTO "checkpoints" VALUES('projects/p/jobs/succeeded',10,2,2,'/artifacts/p/projects/p/jobs/succeeded/checkpoints/step-10','/artifacts/p/staging/2/step-10',2399187460,4096,2.5,2.75,1,86479000000,3);
INSERT INTO "checkpoints" VALUES('projects/p/jobs/running',3,1,2,'/artifacts/p/projects/p/jobs/running/checkpoints/step-3','/artifacts/p/staging/1/step-3',2399187460,4096,2.5,2.75,0,86495000000,1);
INSERT INTO "checkpoints" VALUES('projects/p/jobs/running',6,1,1,'/artifacts/p/running/checkpoints/step-6','/artifacts/p/running/staging/1/step-6',0,0,0.0,0.0,0,86496000000,0);
CREATE TABLE conditions (
  job TEXT NOT NULL REFERENCES jobs (name),
  type INTEGER NOT NULL CHECK (type BETWEEN 1 AND 5),
  message TEXT NOT NULL,
  since INTEGER NOT NULL,
  PRIMARY KEY (job, type)
) STRICT;
CREATE TABLE "events" (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  job TEXT NOT NULL REFERENCES jobs (name),
  job_seq INTEGER NOT NULL CHECK (job_seq > 0),
  time INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN
    ('STATE', 'ATTEMPT', 'CHECKPOINT', 'VALIDATION', 'WARNING', 'PHASE', 'CONDITION')),
  message TEXT NOT NULL,
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 9),
  attempt INTEGER NOT NULL,
  UNIQUE (job, job_seq)
) STRICT;
INSERT INTO "events" VALUES(1,'projects/p/jobs/succeeded',1,86401000000,'STATE','the job is stored',2,0);
INSERT INTO "events" VALUES(2,'projects/p/jobs/succeeded',2,86401000000,'STATE','attempt 1 placed on a (2 ranks), b (2 ranks)',3,1);
INSERT INTO "events" VALUES(3,'projects/p/jobs/succeeded',3,86402000000,'ATTEMPT','attempt 1 is DISPATCHED',3,1);
INSERT INTO "events" VALUES(4,'projects/p/jobs/succeeded',4,86402000000,'PHASE','prepared on node a',3,1);
INSERT INTO "events" VALUES(5,'projects/p/jobs/succeeded',5,86403000000,'PHASE','prepared on node b',3,1);
INSERT INTO "events" VALUES(6,'projects/p/jobs/succeeded',6,86403000000,'ATTEMPT','attempt 1 is STARTING',3,1);
INSERT INTO "events" VALUES(7,'projects/p/jobs/succeeded',7,86405000000,'ATTEMPT','attempt 1 is RUNNING',3,1);
INSERT INTO "events" VALUES(8,'projects/p/jobs/succeeded',8,86405000000,'STATE','',4,1);
INSERT INTO "events" VALUES(9,'projects/p/jobs/succeeded',9,86407000000,'VALIDATION','loss 2.75',4,1);
INSERT INTO "events" VALUES(10,'projects/p/jobs/succeeded',10,86408000000,'CHECKPOINT','checkpoint of step 5 committed: /artifacts/p/projects/p/jobs/succeeded/checkpoints/step-5',4,1);
INSERT INTO "events" VALUES(11,'projects/p/jobs/succeeded',11,86409000000,'ATTEMPT','attempt 1 is STOPPING: TRAINER_SIGNAL: rank 2 was killed by signal 9; the rest of the gang is stopped',4,1);
INSERT INTO "events" VALUES(12,'projects/p/jobs/succeeded',12,86410000000,'ATTEMPT','attempt 1 is FAILED',4,1);
INSERT INTO "events" VALUES(13,'projects/p/jobs/succeeded',13,86410000000,'STATE','attempt 1 ended: TRAINER_SIGNAL: rank 2 was killed by signal 9; retry 1 of 3',2,1);
INSERT INTO "events" VALUES(14,'projects/p/jobs/succeeded',14,86471000000,'STATE','attempt 2 placed on a (2 ranks), b (2 ranks), resumes from /artifacts/p/projects/p/jobs/succeeded/checkpoints/step-5',3,2);
INSERT INTO "events" VALUES(15,'projects/p/jobs/succeeded',15,86472000000,'ATTEMPT','attempt 2 is DISPATCHED',3,2);
INSERT INTO "events" VALUES(16,'projects/p/jobs/succeeded',16,86472000000,'PHASE','prepared on node a',3,2);
INSERT INTO "events" VALUES(17,'projects/p/jobs/succeeded',17,86473000000,'PHASE','prepared on node b',3,2);
INSERT INTO "events" VALUES(18,'projects/p/jobs/succeeded',18,86473000000,'ATTEMPT','attempt 2 is STARTING',3,2);
INSERT INTO "events" VALUES(19,'projects/p/jobs/succeeded',19,86475000000,'ATTEMPT','attempt 2 is RUNNING',3,2);
INSERT INTO "events" VALUES(20,'projects/p/jobs/succeeded',20,86475000000,'STATE','',4,2);
INSERT INTO "events" VALUES(21,'projects/p/jobs/succeeded',21,86478000000,'CHECKPOINT','checkpoint of step 8 committed: /artifacts/p/projects/p/jobs/succeeded/checkpoints/step-8',4,2);
INSERT INTO "events" VALUES(22,'projects/p/jobs/succeeded',22,86479000000,'CHECKPOINT','checkpoint of step 10 (final) committed: /artifacts/p/projects/p/jobs/succeeded/checkpoints/step-10',4,2);
INSERT INTO "events" VALUES(23,'projects/p/jobs/succeeded',23,86481000000,'ATTEMPT','attempt 2 is SUCCEEDED',4,2);
INSERT INTO "events" VALUES(24,'projects/p/jobs/succeeded',24,86481000000,'STATE','',7,2);
INSERT INTO "events" VALUES(25,'projects/p/jobs/failed',1,86483000000,'STATE','the job is stored',2,0);
INSERT INTO "events" VALUES(26,'projects/p/jobs/failed',2,86483000000,'STATE','attempt 1 placed on a (2 ranks)',3,1);
INSERT INTO "events" VALUES(27,'projects/p/jobs/failed',3,86484000000,'ATTEMPT','attempt 1 is DISPATCHED',3,1);
INSERT INTO "events" VALUES(28,'projects/p/jobs/failed',4,86484000000,'PHASE','prepared on node a',3,1);
INSERT INTO "events" VALUES(29,'projects/p/jobs/failed',5,86484000000,'ATTEMPT','attempt 1 is STARTING',3,1);
INSERT INTO "events" VALUES(30,'projects/p/jobs/failed',6,86485000000,'ATTEMPT','attempt 1 is RUNNING',3,1);
INSERT INTO "events" VALUES(31,'projects/p/jobs/failed',7,86485000000,'STATE','',4,1);
INSERT INTO "events" VALUES(32,'projects/p/jobs/failed',8,86486000000,'ATTEMPT','attempt 1 is FAILED',4,1);
INSERT INTO "events" VALUES(33,'projects/p/jobs/failed',9,86486000000,'STATE','attempt 1 ended: NAN_LOSS: loss is NaN at step 3',8,1);
INSERT INTO "events" VALUES(34,'projects/p/jobs/cancelled',1,86488000000,'STATE','the job is stored',2,0);
INSERT INTO "events" VALUES(35,'projects/p/jobs/cancelled',2,86488000000,'STATE','cancelled by the user',9,0);
INSERT INTO "events" VALUES(36,'projects/p/jobs/running',1,86489000000,'STATE','the job is stored',2,0);
INSERT INTO "events" VALUES(37,'projects/p/jobs/running',2,86489000000,'STATE','attempt 1 placed on a (4 ranks), b (4 ranks)',3,1);
INSERT INTO "events" VALUES(38,'projects/p/jobs/running',3,86490000000,'ATTEMPT','attempt 1 is DISPATCHED',3,1);
INSERT INTO "events" VALUES(39,'projects/p/jobs/running',4,86490000000,'PHASE','prepared on node a',3,1);
INSERT INTO "events" VALUES(40,'projects/p/jobs/running',5,86491000000,'PHASE','prepared on node b',3,1);
INSERT INTO "events" VALUES(41,'projects/p/jobs/running',6,86491000000,'ATTEMPT','attempt 1 is STARTING',3,1);
INSERT INTO "events" VALUES(42,'projects/p/jobs/running',7,86493000000,'ATTEMPT','attempt 1 is RUNNING',3,1);
INSERT INTO "events" VALUES(43,'projects/p/jobs/running',8,86493000000,'STATE','',4,1);
INSERT INTO "events" VALUES(44,'projects/p/jobs/running',9,86495000000,'CHECKPOINT','checkpoint of step 3 committed: /artifacts/p/projects/p/jobs/running/checkpoints/step-3',4,1);
INSERT INTO "events" VALUES(45,'projects/p/jobs/stopping',1,86497000000,'STATE','the job is stored',2,0);
INSERT INTO "events" VALUES(46,'projects/p/jobs/stopping',2,86497000000,'STATE','attempt 1 placed on b (1 ranks)',3,1);
INSERT INTO "events" VALUES(47,'projects/p/jobs/stopping',3,86498000000,'ATTEMPT','attempt 1 is DISPATCHED',3,1);
INSERT INTO "events" VALUES(48,'projects/p/jobs/stopping',4,86498000000,'PHASE','prepared on node b',3,1);
INSERT INTO "events" VALUES(49,'projects/p/jobs/stopping',5,86498000000,'ATTEMPT','attempt 1 is STARTING',3,1);
INSERT INTO "events" VALUES(50,'projects/p/jobs/stopping',6,86499000000,'ATTEMPT','attempt 1 is RUNNING',3,1);
INSERT INTO "events" VALUES(51,'projects/p/jobs/stopping',7,86499000000,'STATE','',4,1);
INSERT INTO "events" VALUES(52,'projects/p/jobs/stopping',8,86500000000,'STATE','cancelled by the user',5,1);
INSERT INTO "events" VALUES(53,'projects/p/jobs/stopping',9,86500000000,'ATTEMPT','attempt 1 is STOPPING',5,1);
INSERT INTO "events" VALUES(54,'projects/p/jobs/starting',1,86501000000,'STATE','the job is stored',2,0);
INSERT INTO "events" VALUES(55,'projects/p/jobs/starting',2,86501000000,'STATE','attempt 1 placed on b (1 ranks)',3,1);
INSERT INTO "events" VALUES(56,'projects/p/jobs/queued',1,86503000000,'STATE','the job is stored',2,0);
INSERT INTO "events" VALUES(57,'projects/p/jobs/paused',1,86504000000,'STATE','the job is stored',2,0);
INSERT INTO "events" VALUES(58,'projects/p/jobs/paused',2,86504000000,'STATE','attempt 1 placed on a (1 ranks)',3,1);
INSERT INTO "events" VALUES(59,'projects/p/jobs/paused',3,86505000000,'ATTEMPT','attempt 1 is DISPATCHED',3,1);
INSERT INTO "events" VALUES(60,'projects/p/jobs/paused',4,86505000000,'PHASE','prepared on node a',3,1);
INSERT INTO "events" VALUES(61,'projects/p/jobs/paused',5,86505000000,'ATTEMPT','attempt 1 is STARTING',3,1);
INSERT INTO "events" VALUES(62,'projects/p/jobs/paused',6,86506000000,'ATTEMPT','attempt 1 is RUNNING',3,1);
INSERT INTO "events" VALUES(63,'projects/p/jobs/paused',7,86506000000,'STATE','',4,1);
INSERT INTO "events" VALUES(64,'projects/p/jobs/paused',8,86507000000,'STATE','paused by the user',5,1);
INSERT INTO "events" VALUES(65,'projects/p/jobs/paused',9,86507000000,'ATTEMPT','attempt 1 is STOPPING',5,1);
INSERT INTO "events" VALUES(66,'projects/p/jobs/paused',10,86507000000,'ATTEMPT','attempt 1 is STOPPED',5,1);
INSERT INTO "events" VALUES(67,'projects/p/jobs/paused',11,86507000000,'STATE','attempt 1 is closed',6,1);
CREATE TABLE idempotency (
  project TEXT NOT NULL,
  method TEXT NOT NULL,
  request_id TEXT NOT NULL,
  payload BLOB NOT NULL,
  job TEXT NOT NULL REFERENCES jobs (name),
  create_time INTEGER NOT NULL,
  PRIMARY KEY (project, method, request_id)
) STRICT;
INSERT INTO "idempotency" VALUES('p','CreateJob','request-succeeded',X'7061796C6F61642D737563636565646564','projects/p/jobs/succeeded',86401000000);
INSERT INTO "idempotency" VALUES('p','CreateJob','request-failed',X'7061796C6F61642D6661696C6564','projects/p/jobs/failed',86483000000);
INSERT INTO "idempotency" VALUES('p','CreateJob','request-cancelled',X'7061796C6F61642D63616E63656C6C6564','projects/p/jobs/cancelled',86488000000);
INSERT INTO "idempotency" VALUES('p','CancelJob','request-c',X'7061796C6F6164','projects/p/jobs/cancelled',86488000000);
INSERT INTO "idempotency" VALUES('p','CreateJob','request-running',X'7061796C6F61642D72756E6E696E67','projects/p/jobs/running',86489000000);
INSERT INTO "idempotency" VALUES('p','CreateJob','request-stopping',X'7061796C6F61642D73746F7070696E67','projects/p/jobs/stopping',86497000000);
INSERT INTO "idempotency" VALUES('p','CancelJob','request-s',X'7061796C6F6164','projects/p/jobs/stopping',86500000000);
INSERT INTO "idempotency" VALUES('p','CreateJob','request-starting',X'7061796C6F61642D7374617274696E67','projects/p/jobs/starting',86501000000);
INSERT INTO "idempotency" VALUES('p','CreateJob','request-queued',X'7061796C6F61642D717565756564','projects/p/jobs/queued',86503000000);
INSERT INTO "idempotency" VALUES('p','CreateJob','request-paused',X'7061796C6F61642D706175736564','projects/p/jobs/paused',86504000000);
INSERT INTO "idempotency" VALUES('p','PauseJob','request-p',X'7061796C6F6164','projects/p/jobs/paused',86507000000);
CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  uid TEXT NOT NULL UNIQUE,
  project TEXT NOT NULL,
  display_name TEXT NOT NULL,
  labels TEXT NOT NULL,
  spec BLOB NOT NULL,
  recipe TEXT NOT NULL,
  num_ranks INTEGER NOT NULL CHECK (num_ranks > 0),
  cpu_only INTEGER NOT NULL CHECK (cpu_only IN (0, 1)),
  max_retries INTEGER NOT NULL CHECK (max_retries >= 0),
  keep_last INTEGER NOT NULL CHECK (keep_last >= 0),
  resumable INTEGER NOT NULL CHECK (resumable IN (0, 1)),
  version INTEGER NOT NULL CHECK (version > 0),
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 9),
  pending INTEGER NOT NULL CHECK (pending BETWEEN 0 AND 9),
  message TEXT NOT NULL,
  stop_target INTEGER NOT NULL CHECK (stop_target BETWEEN 0 AND 4),
  stop_grace_ms INTEGER NOT NULL CHECK (stop_grace_ms >= 0),
  current_attempt INTEGER NOT NULL CHECK (current_attempt >= 0),
  retries_used INTEGER NOT NULL CHECK (retries_used BETWEEN 0 AND max_retries),
  backoff_ms INTEGER NOT NULL CHECK (backoff_ms >= 0),
  failure TEXT,
  validation_loss REAL,
  create_time INTEGER NOT NULL,
  update_time INTEGER NOT NULL,
  start_time INTEGER,
  end_time INTEGER, priority INTEGER NOT NULL DEFAULT 0, max_run_time_ms INTEGER NOT NULL DEFAULT 0
  CHECK (max_run_time_ms >= 0), max_user_retries INTEGER NOT NULL DEFAULT 0
  CHECK (max_user_retries >= 0), no_progress_limit INTEGER NOT NULL DEFAULT 3
  CHECK (no_progress_limit > 0), checkpoint_every INTEGER NOT NULL DEFAULT 0
  CHECK (checkpoint_every >= 0), stop_reason INTEGER NOT NULL DEFAULT 0
  CHECK (stop_reason BETWEEN 0 AND 6), user_retries_used INTEGER NOT NULL DEFAULT 0
  CHECK (user_retries_used BETWEEN 0 AND max_user_retries), no_progress INTEGER NOT NULL DEFAULT 0 CHECK (no_progress >= 0), progress_step INTEGER NOT NULL DEFAULT 0 CHECK (progress_step >= 0), fingerprint TEXT NOT NULL DEFAULT '', avoided TEXT NOT NULL DEFAULT '[]', run_time_ms INTEGER NOT NULL DEFAULT 0 CHECK (run_time_ms >= 0), free_failures INTEGER NOT NULL DEFAULT 0 CHECK (free_failures >= 0), fell_back INTEGER NOT NULL DEFAULT 0 CHECK (fell_back IN (0, 1)),
  CHECK ((state = 5) = (stop_target <> 0)),
  CHECK ((state IN (7, 8, 9)) = (end_time IS NOT NULL)),
  CHECK ((state = 8) = (failure IS NOT NULL))
) STRICT;
INSERT INTO "jobs" VALUES(1,'projects/p/jobs/succeeded','uid-succeeded','p','The job succeeded','{"team":"it''s"}',X'737065630077697468207A65726F','model: qwen3
steps: 10
',4,0,3,2,1,11,7,0,'',0,0,2,1,0,NULL,2.75,86401000000,86481000000,86405000000,86481000000,0,0,0,3,0,0,0,0,5,'','[]',0,0,0);
INSERT INTO "jobs" VALUES(2,'projects/p/jobs/failed','uid-failed','p','The job failed','{"team":"it''s"}',X'737065630077697468207A65726F','model: qwen3
steps: 10
',2,0,0,2,1,4,8,0,'attempt 1 ended: NAN_LOSS: loss is NaN at step 3',0,0,1,0,0,'{"reason":"NAN_LOSS","message":"loss is NaN at step 3","rank":0,"node":"a","exit_code":1,"signal":0,"last_lines":["line \"one\"","line two"],"step":0,"cascade":[]}',NULL,86483000000,86486000000,86485000000,86486000000,0,0,0,3,0,0,0,1,0,'NAN_LOSS:line two','[]',0,0,0);
INSERT INTO "jobs" VALUES(3,'projects/p/jobs/cancelled','uid-cancelled','p','The job cancelled','{"team":"it''s"}',X'737065630077697468207A65726F','model: qwen3
steps: 10
',2,0,0,2,1,2,9,0,'cancelled by the user',0,0,0,0,0,NULL,NULL,86488000000,86488000000,NULL,86488000000,0,0,0,3,0,0,0,0,0,'','[]',0,0,0);
INSERT INTO "jobs" VALUES(4,'projects/p/jobs/running','uid-running','p','The job running','{"team":"it''s"}',X'737065630077697468207A65726F','model: qwen3
steps: 10
',8,0,2,2,1,4,4,0,'',0,0,1,0,0,NULL,NULL,86489000000,86495000000,86493000000,NULL,0,0,0,3,0,0,0,0,0,'','[]',0,1,1);
INSERT INTO "jobs" VALUES(5,'projects/p/jobs/stopping','uid-stopping','p','The job stopping','{"team":"it''s"}',X'737065630077697468207A65726F','model: qwen3
steps: 10
',1,0,0,2,1,4,5,0,'cancelled by the user',1,30000,1,0,0,NULL,NULL,86497000000,86500000000,86499000000,NULL,0,0,0,3,0,1,0,0,0,'','[]',0,0,0);
INSERT INTO "jobs" VALUES(6,'projects/p/jobs/starting','uid-starting','p','The job starting','{"team":"it''s"}',X'737065630077697468207A65726F','model: qwen3
steps: 10
',1,0,0,2,1,2,3,0,'attempt 1 placed on b (1 ranks)',0,0,1,0,0,NULL,NULL,86501000000,86501000000,NULL,NULL,0,0,0,3,0,0,0,0,0,'','[]',0,0,0);
INSERT INTO "jobs" VALUES(7,'projects/p/jobs/queued','uid-queued','p','The job queued','{"team":"it''s"}',X'737065630077697468207A65726F','model: qwen3
steps: 10
',64,0,0,2,1,1,2,0,'',0,0,0,0,0,NULL,NULL,86503000000,86503000000,NULL,NULL,0,0,0,3,0,0,0,0,0,'','[]',0,0,0);
INSERT INTO "jobs" VALUES(8,'projects/p/jobs/paused','uid-paused','p','The job paused','{"team":"it''s"}',X'737065630077697468207A65726F','model: qwen3
steps: 10
',1,0,0,2,1,5,6,0,'attempt 1 is closed',0,30000,1,0,0,NULL,NULL,86504000000,86507000000,86506000000,NULL,0,0,0,3,0,0,0,0,0,'','[]',0,0,0);
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;
INSERT INTO "meta" VALUES('coordinator_epoch','1');
INSERT INTO "meta" VALUES('db_uuid','835f09bbea54fba62df3ee1708d60c0e');
CREATE TABLE nodes (
  name TEXT PRIMARY KEY,
  incarnation TEXT NOT NULL,
  boot_id TEXT NOT NULL,
  address TEXT NOT NULL,
  version TEXT NOT NULL,
  devices TEXT NOT NULL,
  lost INTEGER NOT NULL CHECK (lost IN (0, 1)),
  acknowledged_report INTEGER NOT NULL CHECK (acknowledged_report >= 0)
, state_folder TEXT NOT NULL DEFAULT '', scheduling INTEGER NOT NULL DEFAULT 1
  CHECK (scheduling BETWEEN 1 AND 3), scheduling_message TEXT NOT NULL DEFAULT '', agent_id TEXT NOT NULL DEFAULT '', boots INTEGER NOT NULL DEFAULT 0 CHECK (boots >= 0)) STRICT;
INSERT INTO "nodes" VALUES('a','i-a','boot-a','10.0.0.1','0.1','[{"index":0,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-a0"},{"index":1,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-a1"},{"index":2,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-a2"},{"index":3,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-a3"},{"index":4,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-a4"},{"index":5,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-a5"},{"index":6,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-a6"},{"index":7,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-a7"}]',0,20,'/var/lib/a',1,'','machine/a',3);
INSERT INTO "nodes" VALUES('b','i-b','boot-b','10.0.0.1','0.1','[{"index":0,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-b0"},{"index":1,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-b1"},{"index":2,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-b2"},{"index":3,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-b3"},{"index":4,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-b4"},{"index":5,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-b5"},{"index":6,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-b6"},{"index":7,"kind":"h100","memory_bytes":85899345920,"uuid":"GPU-b7"}]',0,10,'/var/lib/b',1,'','machine/b',3);
CREATE TABLE placements (
  job TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  node TEXT NOT NULL,
  node_rank INTEGER NOT NULL CHECK (node_rank >= 0),
  first_rank INTEGER NOT NULL CHECK (first_rank >= 0),
  devices TEXT NOT NULL,
  phase INTEGER NOT NULL CHECK (phase BETWEEN 1 AND 6),
  port INTEGER NOT NULL,
  succeeded INTEGER NOT NULL CHECK (succeeded IN (0, 1)),
  stopped INTEGER NOT NULL CHECK (stopped IN (0, 1)),
  PRIMARY KEY (job, attempt, node_rank),
  UNIQUE (job, attempt, node),
  FOREIGN KEY (job, attempt) REFERENCES attempts (job, number)
) STRICT;
INSERT INTO "placements" VALUES('projects/p/jobs/succeeded',1,'a',0,0,'[0,1]',5,4000,0,1);
INSERT INTO "placements" VALUES('projects/p/jobs/succeeded',1,'b',1,2,'[0,1]',5,4000,0,0);
INSERT INTO "placements" VALUES('projects/p/jobs/succeeded',2,'a',0,0,'[0,1]',5,4000,1,0);
INSERT INTO "placements" VALUES('projects/p/jobs/succeeded',2,'b',1,2,'[0,1]',5,4000,1,0);
INSERT INTO "placements" VALUES('projects/p/jobs/failed',1,'a',0,0,'[2,3]',5,4000,0,0);
INSERT INTO "placements" VALUES('projects/p/jobs/running',1,'a',0,0,'[0,1,4,5]',4,4000,0,0);
INSERT INTO "placements" VALUES('projects/p/jobs/running',1,'b',1,4,'[0,1,4,5]',4,4000,0,0);
INSERT INTO "placements" VALUES('projects/p/jobs/stopping',1,'b',0,0,'[6]',4,4000,0,0);
INSERT INTO "placements" VALUES('projects/p/jobs/starting',1,'b',0,0,'[7]',1,0,0,0);
INSERT INTO "placements" VALUES('projects/p/jobs/paused',1,'a',0,0,'[6]',5,4000,0,1);
CREATE TABLE quarantines (
  node TEXT PRIMARY KEY,
  level INTEGER NOT NULL CHECK (level > 0),
  message TEXT NOT NULL
) STRICT;
INSERT INTO "quarantines" VALUES('b',2,'registered 6 times in 10m');
CREATE TABLE reservations (
  node TEXT NOT NULL,
  device INTEGER NOT NULL,
  job TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  PRIMARY KEY (node, device)
) STRICT;
INSERT INTO "reservations" VALUES('a',0,'projects/p/jobs/running',1);
INSERT INTO "reservations" VALUES('a',1,'projects/p/jobs/running',1);
INSERT INTO "reservations" VALUES('a',4,'projects/p/jobs/running',1);
INSERT INTO "reservations" VALUES('a',5,'projects/p/jobs/running',1);
INSERT INTO "reservations" VALUES('b',0,'projects/p/jobs/running',1);
INSERT INTO "reservations" VALUES('b',1,'projects/p/jobs/running',1);
INSERT INTO "reservations" VALUES('b',4,'projects/p/jobs/running',1);
INSERT INTO "reservations" VALUES('b',5,'projects/p/jobs/running',1);
INSERT INTO "reservations" VALUES('b',6,'projects/p/jobs/stopping',1);
INSERT INTO "reservations" VALUES('b',7,'projects/p/jobs/starting',1);
CREATE TABLE step_metrics (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  step INTEGER NOT NULL CHECK (step >= 0),
  after_event INTEGER NOT NULL,
  raw BLOB NOT NULL,
  UNIQUE (job, attempt, step),
  FOREIGN KEY (job, attempt) REFERENCES attempts (job, number)
) STRICT;
INSERT INTO "step_metrics" VALUES(1,'projects/p/jobs/succeeded',1,1,8,X'73746570006F6E65');
INSERT INTO "step_metrics" VALUES(2,'projects/p/jobs/succeeded',1,5,8,X'73746570006F6E65');
INSERT INTO "step_metrics" VALUES(3,'projects/p/jobs/succeeded',2,6,20,X'73746570006F6E65');
INSERT INTO "step_metrics" VALUES(4,'projects/p/jobs/succeeded',2,10,20,X'73746570006F6E65');
INSERT INTO "step_metrics" VALUES(5,'projects/p/jobs/running',1,3,43,X'73746570006F6E65');
CREATE INDEX jobs_by_state ON jobs (state, seq);
CREATE INDEX jobs_by_project ON jobs (project, seq);
CREATE TRIGGER jobs_final BEFORE UPDATE OF state ON jobs
WHEN OLD.state IN (7, 8, 9) AND NEW.state <> OLD.state
BEGIN SELECT RAISE(ABORT, 'a job never leaves a final state'); END;
CREATE UNIQUE INDEX one_open_attempt ON attempts (job) WHERE state < 6;
CREATE TRIGGER attempts_final BEFORE UPDATE OF state ON attempts
WHEN OLD.state >= 6 AND NEW.state <> OLD.state
BEGIN SELECT RAISE(ABORT, 'an attempt never leaves a final state'); END;
CREATE INDEX open_placements ON placements (node) WHERE phase < 5;
CREATE INDEX step_metrics_by_job ON step_metrics (job, id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',67);
INSERT INTO "sqlite_sequence" VALUES('jobs',8);
INSERT INTO "sqlite_sequence" VALUES('step_metrics',5);
COMMIT;
